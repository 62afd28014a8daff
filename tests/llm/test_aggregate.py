from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from dynamo.errors import ConnectionLostError
from dynamo.llm.aggregate import collect_chat, collect_completion
from dynamo.llm.delta import ResponseHead
from dynamo.llm.sequence import ScoredToken, TextExtra, TextOutput, TokenScore
from dynamo.protocols.generation import WorkerId
from dynamo.protocols.openai import CompletionRequest
from dynamo.protocols.openai.responses import FunctionDelta, ToolCallDelta

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


async def stream(*items: TextOutput | Exception) -> AsyncIterator[TextOutput]:
    for item in items:
        if isinstance(item, Exception):
            raise item
        yield item


async def test_a_chat() -> None:
    answer = msgspec.to_builtins(await collect_chat(stream(*OUTPUTS), request(), HEAD))
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


async def test_a_completion() -> None:
    wanted = request(nvext={"extra_fields": ["worker_id"]})
    answer = msgspec.to_builtins(await collect_completion(stream(*OUTPUTS), wanted, HEAD))
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


async def test_logprobs_follow_on() -> None:
    scored = [ScoredToken(TokenScore(text, text.encode(), -1.0), [], i) for i, text in enumerate("ab")]
    outputs = [
        TextOutput(0, "a", 1, logprobs=scored[:1]),
        TextOutput(0, "", 1),
        TextOutput(0, "b", 1, "stop", logprobs=scored[1:]),
    ]
    chat = await collect_chat(stream(*outputs), request(), HEAD)
    completion = await collect_completion(stream(*outputs), request(), HEAD)
    assert chat.choices[0].logprobs is not None
    assert [token.token for token in chat.choices[0].logprobs.content] == ["a", "b"]
    assert completion.choices[0].logprobs is not None
    assert completion.choices[0].logprobs.tokens == ["a", "b"]


async def test_tool_calls_are_put_together() -> None:
    pieces = [
        [ToolCallDelta(index=0, id="a", type="function", function=FunctionDelta(name="f", arguments="{"))],
        [ToolCallDelta(index=0, function=FunctionDelta(arguments="}"))],
    ]
    outputs = [TextOutput(extra=TextExtra(reasoning="hm", tool_calls=piece)) for piece in pieces]
    answer = await collect_chat(stream(*outputs, TextOutput(finish_reason="tool_calls")), request(), HEAD)
    message = msgspec.to_builtins(answer.choices[0].message)
    assert message == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hmhm",
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    assert answer.usage is None, "nobody counted"


async def test_errors_pass_through() -> None:
    with pytest.raises(ConnectionLostError):
        await collect_chat(stream(OUTPUTS[0], ConnectionLostError("gone")), request(), HEAD)
