from typing import Any

import msgspec
import pytest

from dynamo.llm.aggregate import Answer
from dynamo.llm.delta import ResponseHead
from dynamo.llm.sequence import ScoredToken, TextExtra, TextOutput, TokenScore
from dynamo.protocols.generation import WorkerId
from dynamo.protocols.openai import CompletionRequest
from dynamo.protocols.openai.responses import FunctionDelta, ToolCallDelta
from dynamo.protocols.routing import CandidateReport, RoutingReport

HEAD = ResponseHead(id="id-1", created_s=5, model="m")
OUTPUTS = (
    TextOutput(1, "x", 1, worker_id=WorkerId(7, 1)),
    TextOutput(0, "a", 2, prompt_tokens=3, cached_tokens=1, worker_id=WorkerId(8)),
    TextOutput(1, "y", 1, "stop"),
    TextOutput(0, "b", 1, "length"),
)
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 5,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 1},
}


def request(**fields: Any) -> CompletionRequest:
    return msgspec.convert({"model": "m", "prompt": "x"} | fields, CompletionRequest)


def answer_of(*outputs: TextOutput) -> Answer:
    answer = Answer()
    for output in outputs:
        assert answer.add(output), "all of an answer is wanted"
    return answer


def test_a_chat() -> None:
    answer = msgspec.to_builtins(answer_of(*OUTPUTS).as_chat(request(), HEAD))
    assert answer == {
        "id": "id-1",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "ab"},
                "logprobs": None,
                "finish_reason": "length",
            },
            {"index": 1, "message": {"role": "assistant", "content": "xy"}, "logprobs": None, "finish_reason": "stop"},
        ],
        "usage": USAGE,
    }


def test_a_completion() -> None:
    wanted = request(nvext={"extra_fields": ["worker_id"]})
    answer = msgspec.to_builtins(answer_of(*OUTPUTS).as_completion(wanted, HEAD))
    assert answer == {
        "id": "id-1",
        "object": "text_completion",
        "created": 5,
        "model": "m",
        "choices": [
            {"index": 0, "text": "ab", "logprobs": None, "finish_reason": "length"},
            {"index": 1, "text": "xy", "logprobs": None, "finish_reason": "stop"},
        ],
        "usage": USAGE,
        "nvext": {"worker_id": {"decode_worker_id": 7, "decode_dp_rank": 1}},
    }


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        (["worker_id", "routing"], {"worker_id", "routing"}),
        (["routing", "timing"], {"routing"}),
        (["worker_id"], {"worker_id"}),
    ],
)
def test_the_routing_of_the_first_choice_on_request(fields: list[str], known: set[str]) -> None:
    candidate = CandidateReport(
        worker_id=7,
        dp_rank=1,
        cost=2.5,
        device_blocks=3,
        host_blocks=0,
        disk_blocks=0,
        prefill_tokens=9,
        decode_blocks=4,
    )
    report = RoutingReport(
        mode="kv",
        worker_id=7,
        dp_rank=1,
        prompt_blocks=4,
        block_size=16,
        overlap_blocks=3,
        candidates=[candidate],
    )
    other = msgspec.structs.replace(report, worker_id=8)
    outputs = (
        TextOutput(1, "x", 1, worker_id=WorkerId(7, 1), routing=report),
        TextOutput(0, "a", 1, worker_id=WorkerId(8), routing=other),
    )
    answer = msgspec.to_builtins(answer_of(*outputs).as_chat(request(nvext={"extra_fields": fields}), HEAD))
    assert answer["nvext"].keys() == known
    if "routing" in known:
        routing = answer["nvext"]["routing"]
        assert (routing["worker_id"], routing["queued_ms"], routing["no_overlap_reason"]) == (7, 0, None)
        assert routing["candidates"] == [msgspec.to_builtins(candidate)]


def test_what_no_router_has_explained_is_not_there() -> None:
    answer = answer_of(*OUTPUTS).as_chat(request(nvext={"extra_fields": ["routing"]}), HEAD)
    assert "nvext" not in msgspec.to_builtins(answer)


def test_logprobs_follow_on() -> None:
    scored = [ScoredToken(TokenScore(text, text.encode(), -1.0), [], i) for i, text in enumerate("ab")]
    outputs = [
        TextOutput(0, "a", 1, logprobs=scored[:1]),
        TextOutput(0, "", 1),
        TextOutput(0, "b", 1, "stop", logprobs=scored[1:]),
    ]
    chat = answer_of(*outputs).as_chat(request(), HEAD)
    completion = answer_of(*outputs).as_completion(request(), HEAD)
    assert chat.choices[0].logprobs is not None
    assert [token.token for token in chat.choices[0].logprobs.content] == ["a", "b"]
    assert completion.choices[0].logprobs is not None
    assert completion.choices[0].logprobs.tokens == ["a", "b"]


def test_tool_calls_are_put_together() -> None:
    pieces = [
        [ToolCallDelta(index=0, id="a", type="function", function=FunctionDelta(name="f", arguments="{"))],
        [ToolCallDelta(index=0, function=FunctionDelta(arguments="}"))],
    ]
    outputs = [TextOutput(extra=TextExtra(reasoning="hm", tool_calls=piece)) for piece in pieces]
    answer = answer_of(*outputs, TextOutput(finish_reason="tool_calls")).as_chat(request(), HEAD)
    message = msgspec.to_builtins(answer.choices[0].message)
    assert message == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hmhm",
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    assert answer.usage is None, "nobody counted"
