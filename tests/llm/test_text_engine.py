from typing import Any

import pytest

from dynamo.errors import HandlerError
from dynamo.llm.sequence import TextExtra, TextOutput
from dynamo.llm.text_engine import TextEngine
from dynamo.protocols.generation import TextEngineOutput, WorkerId
from dynamo.protocols.openai import JsonObject, Usage
from dynamo.protocols.openai.responses import FunctionDelta, ToolCallDelta
from dynamo.runtime.stage import pushed
from dynamo.testing.scripted import Scripted, answers
from dynamo.testing.stages import outputs_of, reading

Worker = Scripted[JsonObject, TextEngineOutput]
WORKER = WorkerId(7, 1)
STOP = {"index": 0, "delta": {}, "finish_reason": "stop"}


def chunk(*choices: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices} | fields


def worker(*items: Any, hang: bool = False) -> Worker:
    """Says who it is with the first of the items, as the router does."""
    outputs = [TextEngineOutput(item, None if i else WORKER) for i, item in enumerate(items)]
    return Worker(answers(*outputs), hang=hang)


async def run(*items: Any) -> list[TextOutput]:
    """What comes out; the worker's name is checked, and taken off."""
    outputs = await outputs_of(TextEngine(pushed(worker(*items))), {})
    first, *others = outputs
    assert first.worker_id == (WORKER if items else None)
    assert all(output.worker_id is None for output in others)
    first.worker_id = None
    return outputs


async def test_the_worker_is_given_the_request_as_it_came() -> None:
    asked = worker(chunk(STOP))
    body = {"model": "m", "messages": [], "my own field": [1]}
    await outputs_of(TextEngine(pushed(asked)), body)
    assert asked.requests == [body]


async def test_the_worker_is_named_even_where_its_first_chunk_says_nothing() -> None:
    outputs = await outputs_of(TextEngine(pushed(worker(chunk(), chunk(STOP)))), {})
    assert [(output.worker_id, output.finish_reason) for output in outputs] == [(WORKER, None), (None, "stop")]


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


async def test_a_client_that_leaves_reaches_the_worker() -> None:
    asked = worker("Hi", hang=True)
    async with reading(TextEngine(pushed(asked)), {}) as reader:
        await reader.until(1)
    assert (asked.open, asked.closed_early) == (0, 1)


async def test_a_reader_that_has_enough_ends_the_worker() -> None:
    asked = worker("Hi", hang=True)
    assert await outputs_of(TextEngine(pushed(asked)), {}, enough=1) == [TextOutput(0, "Hi", 1, worker_id=WORKER)]
    assert (asked.open, asked.closed_early) == (0, 1)


async def test_a_reader_that_has_enough_in_the_middle_of_a_chunk() -> None:
    both = chunk({"index": 0, "delta": {"content": "Hi"}}, {"index": 1, "delta": {"content": "Ho"}})
    outputs = await outputs_of(TextEngine(pushed(worker(both, hang=True))), {}, enough=1)
    assert [output.text for output in outputs] == ["Hi"]
