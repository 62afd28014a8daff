from typing import Any

import pytest

from dynamo.errors import HandlerError
from dynamo.llm.sequence import TextExtra, TextOutput
from dynamo.llm.text_engine import TextEngine
from dynamo.protocols.openai import Usage
from dynamo.protocols.openai.responses import FunctionDelta, ToolCallDelta
from dynamo.runtime.context import Context
from dynamo.runtime.handler import closing
from dynamo.testing.scripted import Scripted, answers
from dynamo.testing.waiting import within

Worker = Scripted[dict[str, Any], Any]
STOP = {"index": 0, "delta": {}, "finish_reason": "stop"}


def chunk(*choices: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices} | fields


async def run(*items: Any) -> list[TextOutput]:
    async def collect() -> list[TextOutput]:
        return [output async for output in TextEngine(Worker(answers(*items)))({}, Context())]

    return await within(collect())


async def test_the_worker_is_given_the_request_as_it_came() -> None:
    worker = Worker(answers(chunk(STOP)))
    body = {"model": "m", "messages": [], "my own field": [1]}
    _ = [output async for output in TextEngine(worker)(body, Context())]
    assert worker.requests == [body]


async def test_chunks_of_a_chat() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    outputs = await run(
        chunk({"index": 0, "delta": {"role": "assistant", "content": ""}}),
        chunk({"index": 0, "delta": {"content": "Hi"}}, {"index": 1, "delta": {"content": "Ho"}}),
        chunk(STOP, STOP | {"index": 1}),
        chunk(usage=usage),
    )
    assert outputs == [
        TextOutput(0),
        TextOutput(0, "Hi", 1),
        TextOutput(1, "Ho", 1),
        TextOutput(0, finish_reason="stop"),
        TextOutput(1, finish_reason="stop"),
        TextOutput(extra=TextExtra(usage=Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3))),
    ]


async def test_chunks_of_a_completion() -> None:
    assert await run({"choices": [{"text": "Hi", "finish_reason": "length"}]}) == [TextOutput(0, "Hi", 1, "length")]


async def test_a_whole_answer_is_a_chunk_too() -> None:
    answer = {"choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]}
    assert await run(answer) == [TextOutput(0, "Hi", 1, "stop")]


async def test_texts_and_a_missing_end() -> None:
    assert await run("Hi ", "you") == [
        TextOutput(0, "Hi ", 1),
        TextOutput(0, "you", 1),
        TextOutput(0, finish_reason="stop"),
    ]
    assert await run() == [TextOutput(0, finish_reason="stop")]


async def test_tool_calls_and_reasoning() -> None:
    call = {"index": 1, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}}
    [output, _] = await run(chunk({"delta": {"reasoning_content": "hm", "tool_calls": [call]}}))
    expected = ToolCallDelta(index=1, id="a", type="function", function=FunctionDelta(name="f", arguments="{"))
    assert output.extra == TextExtra(reasoning="hm", tool_calls=[expected])


async def test_logprobs_of_either_shape() -> None:
    content = [{"token": "é", "logprob": -1.0, "bytes": [195, 169], "top_logprobs": []}]
    lists = {"tokens": ["é"], "token_logprobs": [-1.0], "top_logprobs": [{"é": -1.0}], "text_offset": [0]}
    for logprobs in ({"content": content}, lists):
        [output] = await run(chunk(STOP | {"logprobs": logprobs}))
        [token] = output.logprobs or []
        assert (token.chosen.text, token.chosen.raw, token.chosen.logprob) == ("é", "é".encode(), -1.0)


@pytest.mark.parametrize(
    "item",
    [
        5,
        None,
        {"choices": [{"delta": {"content": 5}}]},
        {"choices": {}},
        {"error": {"message": "oh"}},
        chunk(STOP | {"logprobs": {"content": [{"token": "a", "logprob": -1.0, "bytes": [256]}]}}),
        chunk(STOP | {"logprobs": {"tokens": ["a"]}}),
    ],
    ids=repr,
)
async def test_what_is_no_chunk_is_the_workers_fault(item: Any) -> None:
    with pytest.raises(HandlerError):
        await run(item)


async def test_closing_early_reaches_the_worker() -> None:
    worker = Worker(answers("Hi"), hang=True)
    async with closing(TextEngine(worker)({}, Context())) as stream:
        await within(anext(stream))
    assert (worker.open, worker.closed_early) == (0, 1)
