"""What clients get wrong in a body: always a 4xx in OpenAI's shape that names the field."""

import re
import time
from typing import Any

import pytest

from .conftest import Stack
from .raw_http import JSON_HEADERS, Response, encoded, get, post, request
from .served import ECHO, MOCK

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> bytes:
    return encoded({"model": MOCK, "messages": HELLO, "max_tokens": 1} | fields)


def completion(**fields: Any) -> bytes:
    return encoded({"model": MOCK, "prompt": "Hello", "max_tokens": 1} | fields)


MALFORMED = {
    "empty": b"",
    "no JSON": b"hello",
    "cut off": b'{"model": "mock", "messages": [',
    "trailing garbage": chat() + b"x",
    "array": b"[]",
    "string": b'"text"',
    "null": b"null",
    "number": b"1",
    "NaN": b'{"model": "mock", "temperature": NaN}',
    "100,000 levels, unknown field": b'{"model": "mock", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 levels, known field": chat()[:-1] + b', "stop": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 objects": b'{"model": "mock", "metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    "100,000 levels, not closed": b"[" * 100_000,
    "invalid UTF-8 in a prompt": chat().replace(b"Hello", b"\xff\xfe"),
    "invalid UTF-8 in an unknown field": chat()[:-1] + b', "x": "\xc3\x28"}',
    "overlong UTF-8": chat().replace(b"Hello", b"\xc0\xaf"),
    "UTF-8 of a surrogate": chat().replace(b"Hello", b"\xed\xa0\x80"),
    "UTF-16": chat().decode().encode("utf-16"),
    "lone surrogate": chat().replace(b"Hello", b"\\ud800"),
    "control character": chat().replace(b"Hello", b"\x01"),
    "huge exponent": chat()[:-1] + b', "temperature": 1e999}',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed(stack: Stack, body: bytes) -> None:
    for path in (CHAT, COMPLETIONS):
        error = _refused(await post(stack.url, path, body), 400)
        assert error["type"] == "invalid_request_error"


# field, value, what the error names, positions aside (the field itself if not given)
WRONG: list[tuple[str, Any] | tuple[str, Any, str]] = [
    ("model", None),
    ("model", 5),
    ("model", ""),
    ("messages", None),
    ("messages", []),
    ("messages", "Hello"),
    ("messages", {}),
    ("messages", [None], "messages"),
    ("messages", ["Hello"], "messages"),
    ("messages", [{}], "messages.role"),
    ("messages", [{"role": "wizard", "content": "x"}], "messages.role"),
    ("messages", [{"role": "user"}], "messages.content"),
    ("messages", [{"role": "user", "content": None}], "messages.content"),
    ("messages", [{"role": "user", "content": 5}], "messages.content"),
    ("messages", [{"role": "user", "content": [{"type": "text"}]}], "messages.content.text"),
    ("messages", [{"role": "user", "content": [{"type": "image_url"}]}], "messages.content.type"),
    ("messages", [{"role": "user", "content": [{"type": "input_audio"}]}], "messages.content.type"),
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", "hot"),
    ("top_p", 0),
    ("top_p", 1.5),
    ("top_k", -2),
    ("min_p", 2),
    ("n", 0),
    ("n", 129),
    ("n", 1.5),
    ("n", True),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", 2**31),
    ("max_tokens", 10**30),
    ("max_tokens", "10"),
    ("max_completion_tokens", 0),
    ("min_tokens", 2),
    ("presence_penalty", 3),
    ("frequency_penalty", -3),
    ("repetition_penalty", 0),
    ("seed", 2**63),
    ("seed", "x"),
    ("stream", "yes"),
    ("stop", ["a"] * 5),
    ("stop", ""),
    ("stop", 5),
    ("stop_token_ids", [10**6]),
    ("stop_token_ids", [-1]),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {"5": 101}),
    ("logprobs", "yes"),
    ("logprobs", True),
    ("top_logprobs", 3),
    ("top_logprobs", 21),
    ("response_format", {"type": "xml"}, "response_format.type"),
    ("response_format", {"type": "json_object"}),
    ("response_format", {"type": "json_schema"}, "response_format.json_schema"),
    ("tools", [{"type": "function"}], "tools.function"),
    ("tool_choice", "required"),
    ("functions", [{"name": "f"}]),
    ("modalities", ["audio"]),
    ("audio", {"voice": "x"}),
    ("nvext", {"backend_instance_id": -1}, "nvext.backend_instance_id"),
    ("nvext", {"backend_instance_id": 2**64}, "nvext.backend_instance_id"),
    ("nvext", {"backend_instance_id": 2**70}, "nvext.backend_instance_id"),
    ("nvext", {"backend_instance_id": 1}, "nvext.backend_instance_id"),
    ("nvext", {"extra_fields": "worker_id"}, "nvext.extra_fields"),
    ("nvext", {"agent_hints": []}, "nvext.agent_hints"),
    ("nvext", {"agent_hints": {"priority": "high"}}, "nvext.agent_hints.priority"),
    ("nvext", {"agent_hints": {"priority": 1e7}}, "nvext.agent_hints.priority"),
    ("nvext", []),
    ("cache_salt", ""),
    ("cache_salt", "x" * 257),
    ("cache_salt", 5),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[0]}={case[1]!r:.40}")
async def test_wrong_field_of_a_chat(stack: Stack, case: tuple[str, Any, str]) -> None:
    field, value, *named = case
    for stream in (False, True):
        body = chat(**{"stream": stream, field: value})
        error = _refused(await post(stack.url, CHAT, body), 400)
        assert _without_positions(error["param"]) == (named[0] if named else field)


WRONG_COMPLETION: list[tuple[str, Any]] = [
    ("prompt", None),
    ("prompt", []),
    ("prompt", ""),
    ("prompt", [[]]),
    ("prompt", ["a", 5]),
    ("prompt", [5, [6]]),
    ("prompt", [-1]),
    ("prompt", [2**32]),
    ("prompt", [10**6]),
    ("prompt", [[1], [10**6]]),
    ("prompt", {"a": 1}),
    ("prompt", ["a"] * 1025),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("logprobs", 6),
    ("logprobs", 1),
    ("best_of", 2),
    ("best_of", 0),
    ("suffix", "x"),
    ("echo", "yes"),
]


@pytest.mark.parametrize("case", WRONG_COMPLETION, ids=lambda case: f"{case[0]}={case[1]!r:.40}")
async def test_wrong_field_of_a_completion(stack: Stack, case: tuple[str, Any]) -> None:
    field, value = case
    for stream in (False, True):
        body = completion(**{"stream": stream, field: value})
        assert _without_positions(_refused(await post(stack.url, COMPLETIONS, body), 400)["param"]) == field


async def test_wrong_fields_are_named_with_their_place(stack: Stack) -> None:
    messages = [*HELLO, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]
    error = _refused(await post(stack.url, CHAT, chat(messages=messages)), 400)
    assert error["param"] == "messages[1].content[1].type"
    assert error["code"] == "unsupported_feature"


async def test_stream_options_without_a_stream(stack: Stack) -> None:
    error = _refused(await post(stack.url, CHAT, chat(stream_options={"include_usage": True})), 400)
    assert error["param"] == "stream_options"


@pytest.mark.parametrize("field", ["model", "messages"])
async def test_missing_field(stack: Stack, field: str) -> None:
    body: dict[str, Any] = {"model": MOCK, "messages": HELLO}
    del body[field]
    assert _refused(await post(stack.url, CHAT, body), 400)["param"] == field


@pytest.mark.parametrize("stream", [False, True])
async def test_prompt_over_the_context(stack: Stack, stream: bool) -> None:
    for path, body, field in (
        (CHAT, chat(messages=[{"role": "user", "content": "Hello " * 40_000}], stream=stream), "messages"),
        (COMPLETIONS, completion(prompt=[5] * 40_000, stream=stream), "prompt"),
    ):
        error = _refused(await post(stack.url, path, body), 400)
        assert error["code"] == "context_length_exceeded"
        assert error["param"] == field
        assert "32768" in error["message"]
        assert "400" in error["message"] or "800" in error["message"]


@pytest.mark.alone
async def test_prompt_far_over_the_context_is_not_even_tokenized(stack: Stack) -> None:
    """At 32,768 tokens of at most a few characters there is no need to look at two million."""
    started_s = time.monotonic()
    error = _refused(await post(stack.url, COMPLETIONS, completion(prompt="Hello " * 400_000)), 400)
    assert error["code"] == "context_length_exceeded"
    assert time.monotonic() - started_s < 0.3


async def test_rank_that_the_worker_does_not_have(stack: Stack) -> None:
    error = _refused(await post(stack.url, CHAT, chat(nvext={"dp_rank": 7})), 400)
    assert error["param"] == "nvext.dp_rank"


async def test_answer_over_the_context(stack: Stack) -> None:
    error = _refused(await post(stack.url, COMPLETIONS, completion(prompt=[5] * 32_000, max_tokens=769)), 400)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "max_tokens"
    assert all(number in error["message"] for number in ("32000", "769", "32768"))

    fits = await post(stack.url, COMPLETIONS, completion(prompt=[5] * 32_767, max_tokens=1))
    assert fits.status == 200
    full = _refused(await post(stack.url, COMPLETIONS, completion(prompt=[5] * 32_768, max_tokens=1)), 400)
    assert full["code"] == "context_length_exceeded"


@pytest.mark.parametrize("name", ["none", "Mock", "mock ", "../mock", "mock/", "m\x00k", "世界", "x" * 10_000])
async def test_unknown_model(stack: Stack, name: str) -> None:
    error = _refused(await post(stack.url, CHAT, chat(model=name)), 404)
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"]
)
async def test_wrong_content_type(stack: Stack, content_type: str) -> None:
    _refused(await request(stack.url, "POST", CHAT, chat(), {"content-type": content_type}), 415)


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json", None]
)
async def test_right_content_type(stack: Stack, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    assert (await request(stack.url, "POST", CHAT, chat(), headers)).status == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
async def test_compressed_body(stack: Stack, encoding: str) -> None:
    error = _refused(
        await request(stack.url, "POST", CHAT, b"\x1f\x8b", JSON_HEADERS | {"content-encoding": encoding}), 415
    )
    assert encoding in error["message"]
    identity = JSON_HEADERS | {"content-encoding": "identity"}
    assert (await request(stack.url, "POST", CHAT, chat(), identity)).status == 200


@pytest.mark.parametrize("header", ["x-request-id", "x-dynamo-session-id"])
@pytest.mark.parametrize("name", ["", "x" * 257, "a\tb", "caf\xe9"])
async def test_bad_name_in_a_header(stack: Stack, header: str, name: str) -> None:
    error = _refused(await request(stack.url, "POST", CHAT, chat(), JSON_HEADERS | {header: name}), 400)
    assert error["param"] == header
    assert header in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("PUT", COMPLETIONS, "POST"),
        ("DELETE", CHAT, "POST"),
        ("OPTIONS", CHAT, "POST"),
        ("HEAD", CHAT, "POST"),
        ("POST", "/v1/models", "GET"),
        ("POST", "/health", "GET"),
        ("DELETE", "/v1/models/org/echo", "GET"),
    ],
)
async def test_wrong_method(stack: Stack, method: str, path: str, allowed: str) -> None:
    response = await request(stack.url, method, path)
    assert response.status == 405
    assert allowed in response.headers["allow"].split(", ")
    if method != "HEAD":
        assert response.error()["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/chat", "/v1/chat/completions/", "/v2/models", "/docs", "//", "/v1/models%00", "/%ff"]
)
async def test_unknown_route(stack: Stack, path: str) -> None:
    for method in ("GET", "POST"):
        assert _refused(await request(stack.url, method, path), 404)["code"] == "not_found"


async def test_afterwards_all_is_well(stack: Stack) -> None:
    for model in (MOCK, ECHO):
        assert (await post(stack.url, CHAT, chat(model=model))).status == 200
    assert (await get(stack.url, "/health")).status == 200
    assert "Traceback" not in stack.frontend.output


def _without_positions(field: str) -> str:
    return re.sub(r"\[\d+\]", "", field)


def _refused(response: Response, status: int) -> dict[str, Any]:
    assert response.status == status, (response.status, response.body[:300])
    error = response.error()
    assert len(error["message"]) < 20_000
    return error
