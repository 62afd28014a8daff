import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.errors import InvalidRequestError
from dynamo.protocols.openai import (
    ChatCompletionRequest,
    CompletionRequest,
    decode_chat,
    decode_completion,
    decode_object,
)

USER = {"role": "user", "content": "hi"}
CHAT = {"model": "m", "messages": [USER]}
COMPLETION = {"model": "m", "prompt": "hi"}
DEEP = "[" * 100_000 + "]" * 100_000


def chat(**fields: Any) -> ChatCompletionRequest:
    return decode_chat(json.dumps(CHAT | fields).encode())


def completion(**fields: Any) -> CompletionRequest:
    return decode_completion(json.dumps(COMPLETION | fields).encode())


def with_raw(field: str, value: str) -> bytes:
    """A chat body with one more field, whose value is no Python value."""
    return (json.dumps(CHAT)[:-1] + f', "{field}": {value}}}').encode()


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def test_all_fields_of_a_chat_request() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    request = chat(
        stream=True,
        stream_options={"include_usage": True},
        n=2,
        temperature=0,
        top_p=1,
        top_k=-1,
        min_p=0.1,
        presence_penalty=-2,
        frequency_penalty=2,
        repetition_penalty=1.1,
        seed=-(2**63),
        logit_bias={"5": -100, "6": 100},
        stop=["a", "b"],
        stop_token_ids=[1],
        min_tokens=1,
        ignore_eos=True,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        cache_salt="s" * 256,
        nvext={
            "extra_fields": ["worker_id", "routing"],
            "agent_hints": {"priority": -1_000_000, "more": 1},
            "backend_instance_id": 2**64 - 1,
            "dp_rank": 1,
        },
        max_tokens=5,
        max_completion_tokens=6,
        logprobs=True,
        top_logprobs=20,
        tools=[tool],
        tool_choice="auto",
        parallel_tool_calls=True,
        chat_template_kwargs={"enable_thinking": False},
    )
    assert (request.temperature, request.seed, request.logit_bias) == (0.0, -(2**63), {5: -100.0, 6: 100.0})
    assert request.response_format is not None
    assert request.response_format.json_schema is not None
    assert request.response_format.json_schema.schema == {"type": "object"}
    assert request.nvext is not None
    assert request.nvext.backend_instance_id == 2**64 - 1
    assert request.nvext.agent_hints is not None
    assert request.nvext.agent_hints.priority == -1e6
    assert request.tools is not None
    assert request.tools[0].function.name == "f"


def test_null_is_absent() -> None:
    names = [name for name in ChatCompletionRequest.__struct_fields__ if name not in ("model", "messages")]
    assert chat(**dict.fromkeys(names)) == chat()


def test_unknown_names_and_those_without_meaning_here_are_ignored() -> None:
    assert chat(user="u", store=True, metadata={"a": 1}, service_tier="auto", no_such_name=[{}]) == chat()


@pytest.mark.parametrize("decode", [decode_chat, decode_completion, decode_object])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nul",
        b"[]",
        b'"text"',
        b"{",
        b'{"model": NaN}',
        b"{'model': 'm'}",
        b"\xef\xbb\xbf{}",
        b"\xff",
        DEEP.encode(),
        f'{{"user": {DEEP}}}'.encode(),
        json.dumps(CHAT | COMPLETION).encode() + b" x",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_object(decode: Any, body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        decode(body)


@pytest.mark.parametrize("field", ["user", "reasoning_effort", "chat_template_kwargs"])
@pytest.mark.parametrize("value", [b'"\xff"', b'"\xed\xa0\x80"', b'"\\ud800"', b'"\\ud800x"'])
def test_text_that_is_no_text_is_refused_wherever_it_stands(field: str, value: bytes) -> None:
    value = b'{"a": ' + value + b"}" if field == "chat_template_kwargs" else value
    body = json.dumps(CHAT)[:-1].encode() + b', "' + field.encode() + b'": ' + value + b"}"
    with pytest.raises(InvalidRequestError):
        decode_chat(body)


def test_a_surrogate_pair_is_one_character() -> None:
    assert chat(messages=[{"role": "user", "content": "\U0001f600"}]).messages[0].content == "\U0001f600"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("model", 1),
        ("model", None),
        ("messages", []),
        ("messages", "hi"),
        ("stream", 1),
        ("n", 0),
        ("n", 129),
        ("n", 1.5),
        ("n", True),
        ("n", 10**30),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "1"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 2**31),
        ("min_p", 1.1),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0),
        ("seed", 2**63),
        ("seed", 1.0),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {str(10**30): 1}),
        ("logit_bias", []),
        ("stop", ""),
        ("stop", ["a"] * 5),
        ("stop", "a" * 1001),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [2**32]),
        ("min_tokens", -1),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_completion_tokens", 0),
        ("top_logprobs", 21),
        ("top_logprobs", 1),  # without logprobs
        ("stream_options", {"include_usage": True}),  # without stream
        ("tools", {}),
        ("tool_choice", "sometimes"),
        ("response_format", "json"),
        ("cache_salt", ""),
        ("cache_salt", "x" * 257),
        ("cache_salt", 5),
    ],
)
def test_values_of_chat_fields(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat(**{field: value})
    assert caught.value.param == field or (caught.value.param or "").startswith(f"{field}[")
    assert field in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [USER, {"content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content[0].text"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"tools": [{"type": "function", "function": {"description": "d"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"nvext": {"backend_instance_id": 2**64}}, "nvext.backend_instance_id"),
        ({"nvext": {"extra_fields": "worker_id"}}, "nvext.extra_fields"),
        ({"nvext": {"agent_hints": 5}}, "nvext.agent_hints"),
        ({"nvext": {"agent_hints": {"priority": "high"}}}, "nvext.agent_hints.priority"),
        ({"nvext": {"agent_hints": {"priority": True}}}, "nvext.agent_hints.priority"),
        ({"nvext": {"agent_hints": {"priority": 1_000_001}}}, "nvext.agent_hints.priority"),
        ({"nvext": {"agent_hints": {"priority": -1e7}}}, "nvext.agent_hints.priority"),
        ({"nvext": {"agent_hints": {"priority": 10**400}}}, "nvext.agent_hints.priority"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        ({"min_tokens": 6, "max_tokens": 50, "max_completion_tokens": 5}, "min_tokens"),
        ({"chat_template_kwargs": nested(300)}, "chat_template_kwargs"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": nested(300)}}]},
            "tools[0].function.parameters",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": nested(300)}}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_the_field_is_named_where_it_is(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_required_fields(missing: str) -> None:
    body = json.dumps({name: value for name, value in CHAT.items() if name != missing}).encode()
    with pytest.raises(InvalidRequestError, match=f"{missing}: required") as caught:
        decode_chat(body)
    assert caught.value.param == missing


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
def test_numbers_that_are_none(number: str) -> None:
    with pytest.raises(InvalidRequestError):
        decode_chat(with_raw("temperature", number))


def test_what_the_client_sent_is_quoted_in_part_and_cannot_forge_a_place() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat(messages=[{"role": "x" * 100_000 + " - at `$.model`", "content": "x"}])
    assert caught.value.param == "messages[0].role"
    assert len(caught.value.message) < 1000


def test_an_assistant_may_be_silent() -> None:
    request = chat(messages=[USER, {"role": "assistant", "content": None}, {"role": "assistant"}])
    assert [message.content for message in request.messages] == ["hi", None, None]


@pytest.mark.parametrize("prompt", ["text", ["a", "b"], [1, 2, 3], [[1], [2, 3]], "", [""]])
def test_prompts(prompt: object) -> None:
    assert completion(prompt=prompt).prompt == prompt


@pytest.mark.parametrize(
    "prompt",
    [None, 1, [], [[]], [[1], []], ["a", 1], [1, [1]], [1.5], [True], [-1], [2**32], [["a"]], [None], {}, ["a"] * 1025],
    ids=lambda prompt: repr(prompt)[:20],
)
def test_prompts_that_are_none(prompt: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        completion(prompt=prompt)
    assert (caught.value.param or "").startswith("prompt")


@pytest.mark.parametrize(
    ("field", "value"),
    [("logprobs", 6), ("logprobs", True), ("max_tokens", -1), ("max_tokens", 0), ("echo", 1), ("best_of", 0)],
)
def test_values_of_completion_fields(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        completion(**{field: value})
    assert caught.value.param == field


def test_an_echo_needs_no_answer() -> None:
    assert completion(echo=True, max_tokens=0).max_tokens == 0


def test_prompts_times_n_is_bounded() -> None:
    assert completion(prompt=["a"] * 8, n=128).n == 128
    with pytest.raises(InvalidRequestError):
        completion(prompt=["a"] * 9, n=128)


def test_decode_object_refuses_what_others_could_not_walk_through() -> None:
    assert decode_object(json.dumps(nested(150)).encode())
    with pytest.raises(InvalidRequestError):
        decode_object(json.dumps(nested(300)).encode())


def test_decode_object_keeps_everything() -> None:
    body = {"model": "m", "anything": {"at": ["all", 1, None]}}
    assert decode_object(json.dumps(body).encode()) == body


TEXT = st.text('aé"\\\n\U0001f600\ud800', max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(ChatCompletionRequest.__struct_fields__ + CompletionRequest.__struct_fields__)


@settings(deadline=None)
@given(fields=st.dictionaries(FIELDS, JSON, max_size=4), cut=st.integers(0, 200), flip=st.integers(0, 7))
def test_whatever_comes_is_a_request_or_the_clients_mistake(fields: dict[str, Any], cut: int, flip: int) -> None:
    whole = json.dumps(CHAT | COMPLETION | fields).encode()
    broken = bytearray(whole)
    broken[cut % len(whole)] ^= 1 << flip
    for body in (whole, whole[:cut], bytes(broken)):
        for decode in (decode_chat, decode_completion, decode_object):
            try:
                decode(body)
            except InvalidRequestError as error:
                assert error.message  # noqa: PT017 - either way is fine
