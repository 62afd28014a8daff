import json
from typing import Any

import msgspec
import pytest

from dynamo.llm.delta import ChatEvents, CompletionEvents, EventStream, ResponseHead
from dynamo.llm.sequence import ScoredToken, TextExtra, TextOutput, TokenScore
from dynamo.protocols.generation import WorkerId
from dynamo.protocols.openai import ChatCompletionRequest, CompletionRequest, Usage
from dynamo.protocols.openai.responses import FunctionDelta, ToolCallDelta
from dynamo.protocols.routing import RoutingReport

HEAD = ResponseHead(id="chatcmpl-1", created_s=5, model='the "model"\n')
NASTY = 'a\n\n"\\\u2028\x00</script>é\U0001f600'


def chat(**fields: Any) -> ChatEvents:
    content = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True} | fields
    return ChatEvents(msgspec.convert(content, ChatCompletionRequest), HEAD)


def completion(**fields: Any) -> CompletionEvents:
    return CompletionEvents(msgspec.convert({"model": "m", "prompt": "x"} | fields, CompletionRequest), HEAD)


def chunks(data: bytes) -> list[dict[str, Any]]:
    """The chunks in the events of `data`."""
    events = data.split(b"\n\n")
    assert events.pop() == b""
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def choices(events: EventStream[Any], *outputs: TextOutput) -> list[dict[str, Any]]:
    return [chunk["choices"][0] for output in outputs for chunk in chunks(events.encode(output))]


def test_a_chat_begins_with_the_role() -> None:
    [opening, first] = chunks(chat().encode(TextOutput(0, "Hi", 1)))
    assert opening == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 5,
        "model": 'the "model"\n',
        "choices": [
            {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        ],
    }
    assert first["choices"][0]["delta"] == {"content": "Hi"}


def test_a_step_of_a_chat() -> None:
    events = chat()
    events.encode(TextOutput(0, "", 1))
    assert chunks(events.encode(TextOutput(0, NASTY, 1))) == [
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 5,
            "model": 'the "model"\n',
            "choices": [{"index": 0, "delta": {"content": NASTY}, "logprobs": None, "finish_reason": None}],
        }
    ]


def test_a_step_of_a_completion() -> None:
    events = completion()
    for _ in range(2):  # there is no opening: the first step is like the others
        assert chunks(events.encode(TextOutput(0, NASTY, 1))) == [
            {
                "id": "chatcmpl-1",
                "object": "text_completion",
                "created": 5,
                "model": 'the "model"\n',
                "choices": [{"index": 0, "text": NASTY, "logprobs": None, "finish_reason": None}],
            }
        ]


@pytest.mark.parametrize("make", [chat, completion])
@pytest.mark.parametrize("include_usage", [True, False])
def test_the_quick_way_gives_the_same_bytes(make: Any, include_usage: bool) -> None:
    events = make(stream=True, stream_options={"include_usage": include_usage})
    events.encode(TextOutput(0, "x"))
    slow = events._encode_rare(TextOutput(0, NASTY), begins=False)
    assert events.encode(TextOutput(0, NASTY)) == slow


def test_nothing_to_see_is_no_event() -> None:
    events = chat()
    events.encode(TextOutput(0, "x", 1))
    assert events.encode(TextOutput(0, "", 1)) == b""
    assert completion().encode(TextOutput(0, "", 1)) == b""


def test_the_end_of_a_choice() -> None:
    events = chat()
    [_, with_text] = choices(events, TextOutput(0, "x", 1, "length"))
    assert (with_text["delta"], with_text["finish_reason"]) == ({"content": "x"}, "length")
    [end] = choices(events, TextOutput(0, "", 1, "stop"))
    assert (end["delta"], end["finish_reason"]) == ({}, "stop")


def test_each_choice_has_its_own_opening() -> None:
    found = choices(chat(), TextOutput(0, "a", 1), TextOutput(1, "b", 1), TextOutput(1, "c", 1), TextOutput(0, "d", 1))
    assert [(choice["index"], choice["delta"].get("role"), choice["delta"]["content"]) for choice in found] == [
        (0, "assistant", ""),
        (0, None, "a"),
        (1, "assistant", ""),
        (1, None, "b"),
        (1, None, "c"),
        (0, None, "d"),
    ]


@pytest.mark.parametrize("make", [chat, completion])
def test_usage_on_request_and_null_before_it(make: Any) -> None:
    events = make(stream=True, stream_options={"include_usage": True})
    outputs = [
        TextOutput(0, "a", 2, prompt_tokens=10, cached_tokens=4),
        TextOutput(0, "b", 1),
        TextOutput(0, "", 1),
        TextOutput(0, "", 1, "stop"),
    ]
    before = [chunk for output in outputs for chunk in chunks(events.encode(output))]
    assert [chunk["usage"] for chunk in before] == [None] * len(before)
    [last] = chunks(events.finish())
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


@pytest.mark.parametrize("make", [chat, completion])
def test_no_usage_unless_asked_for(make: Any) -> None:
    events = make(stream=True)
    found = chunks(events.encode(TextOutput(0, "a", 1, "stop", prompt_tokens=1)))
    assert all("usage" not in chunk and "nvext" not in chunk for chunk in found)
    assert events.finish() == b""


@pytest.mark.parametrize("include_usage", [True, False])
def test_the_last_chunk_names_the_worker_on_request(include_usage: bool) -> None:
    options = {"stream_options": {"include_usage": include_usage}}
    events = chat(nvext={"extra_fields": ["worker_id"]}, **options)
    data = events.encode(TextOutput(0, "a", 1, prompt_tokens=1, worker_id=WorkerId(2**64 - 1, 3)))
    assert all("nvext" not in chunk for chunk in chunks(data))
    data = events.encode(TextOutput(0, "b", 1, "stop")) + events.finish()
    worker = {"decode_worker_id": 2**64 - 1, "decode_dp_rank": 3}
    assert chunks(data)[-1]["nvext"] == {"worker_id": worker}


@pytest.mark.parametrize("fields", [["routing"], ["worker_id", "routing"]])
def test_the_last_chunk_explains_the_routing_on_request(fields: list[str]) -> None:
    report = RoutingReport(mode="kv", worker_id=7, dp_rank=0, prompt_blocks=4, block_size=16, overlap_blocks=3)
    events = chat(nvext={"extra_fields": fields})
    data = events.encode(TextOutput(0, "a", 1, prompt_tokens=1, worker_id=WorkerId(7), routing=report))
    assert all("nvext" not in chunk for chunk in chunks(data))
    nvext = chunks(events.encode(TextOutput(0, "b", 1, "stop")))[-1]["nvext"]
    assert nvext["routing"] == msgspec.to_builtins(report)
    assert nvext.keys() == set(fields)


def test_logprobs() -> None:
    scored = ScoredToken(TokenScore("é", "é".encode(), -0.5), [TokenScore("e", b"e", -1.0)], 3)
    output = TextOutput(0, "é", 1, logprobs=[scored])
    top = {"token": "e", "logprob": -1.0, "bytes": [101]}
    assert choices(chat(), output)[-1]["logprobs"] == {
        "content": [{"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [top]}]
    }
    assert choices(completion(), output)[-1]["logprobs"] == {
        "tokens": ["é"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"e": -1.0, "é": -0.5}],
        "text_offset": [3],
    }


def test_logprobs_of_a_token_without_text_are_not_lost() -> None:
    events = chat()
    events.encode(TextOutput(0, "x", 1))
    scored = ScoredToken(TokenScore("\ufffd", b"\xc3", -0.5), [], 0)
    [choice] = choices(events, TextOutput(0, "", 1, logprobs=[scored]))
    assert choice["delta"] == {}
    assert choice["logprobs"]["content"][0]["bytes"] == [195]


def test_what_workers_add_that_speak_text() -> None:
    call = ToolCallDelta(index=0, id="a", function=FunctionDelta(name="f"))
    [_, choice] = choices(chat(), TextOutput(0, extra=TextExtra(reasoning="hm", tool_calls=[call])))
    assert choice["delta"] == {
        "reasoning_content": "hm",
        "tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}],
    }


def test_the_count_of_a_worker_that_speaks_text() -> None:
    events = chat(stream_options={"include_usage": True})
    events.encode(TextOutput(0, "x", 1, "stop"))
    assert events.finish() == b"", "nobody counted"
    assert (
        events.encode(TextOutput(extra=TextExtra(usage=Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3))))
        == b""
    )
    [last] = chunks(events.finish())
    assert last["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
