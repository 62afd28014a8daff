"""The smallest engine."""

import asyncio
from contextlib import aclosing

import pytest

from dynamo.engines.echo import EchoEngine
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest, StopConditions
from dynamo.runtime.context import Context
from dynamo.testing import within
from dynamo.tokens import token_array

FOREVER_S = 3600.0


def request(*token_ids: int, max_tokens: int | None = None) -> PreprocessedRequest:
    return PreprocessedRequest(
        model="m", token_ids=token_array(token_ids), stop_conditions=StopConditions(max_tokens=max_tokens)
    )


async def answer(engine: EchoEngine, asked: PreprocessedRequest, context: Context) -> list[LLMEngineOutput]:
    return [output async for output in engine.generate(asked, context)]


@pytest.mark.parametrize(
    ("max_tokens", "answered", "reason"),
    [
        (None, [5, 6, 7], FinishReason.STOP),
        (10, [5, 6, 7], FinishReason.STOP),
        (2, [5, 6], FinishReason.LENGTH),
        (3, [5, 6, 7], FinishReason.LENGTH),
        (1, [5], FinishReason.LENGTH),
    ],
)
async def test_answers_with_the_prompt(max_tokens: int | None, answered: list[int], reason: FinishReason) -> None:
    outputs = await answer(EchoEngine(), request(5, 6, 7, max_tokens=max_tokens), Context())
    assert [list(output.token_ids) for output in outputs] == [[token] for token in answered]
    assert [output.finish_reason for output in outputs] == [None] * (len(answered) - 1) + [reason]


async def test_goes_on_where_another_worker_has_stopped() -> None:
    asked = request(5, 6, 7, 5, 6, max_tokens=1)  # two of three
    asked.resumed_tokens = 2
    assert [list(output.token_ids) for output in await answer(EchoEngine(), asked, Context())] == [[7]]


async def test_load() -> None:
    engine = EchoEngine()
    assert engine.load()[0].running_requests == 0
    async with aclosing(engine.generate(request(1, 2), Context())) as stream:  # type: ignore[type-var]
        await anext(stream)
        assert engine.load()[0].running_requests == 1
    assert engine.load()[0].running_requests == 0


async def test_abort() -> None:
    engine = EchoEngine()
    stream = engine.generate(request(1, 2, 3), Context("mine"))
    other = engine.generate(request(1, 2), Context("other"))
    await anext(stream)
    await anext(other)
    await engine.abort("mine")
    await engine.abort("nobody's")
    assert [output.finish_reason async for output in stream] == [FinishReason.CANCELLED]
    assert [output.finish_reason async for output in other] == [FinishReason.STOP]


async def test_two_requests_of_the_same_id() -> None:
    engine = EchoEngine()
    answers = await asyncio.gather(*(answer(engine, request(1, 2, 3), Context("same")) for _ in range(3)))
    assert [len(outputs) for outputs in answers] == [3, 3, 3]
    assert engine.load()[0].running_requests == 0

    streams = [engine.generate(request(1, 2), Context("same")) for _ in range(2)]
    for stream in streams:
        await anext(stream)
    await engine.abort("same")
    for stream in streams:
        assert (await anext(stream)).finish_reason is FinishReason.CANCELLED


async def test_closing_frees_a_request_that_waits() -> None:
    engine = EchoEngine(FOREVER_S)
    waiting = asyncio.create_task(answer(engine, request(1), Context()))
    await asyncio.sleep(0)
    assert engine.load()[0].running_requests == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(waiting)
    assert engine.load()[0].running_requests == 0


async def test_cleanup_while_requests_run() -> None:
    engine = EchoEngine()
    await engine.start()
    stream = engine.generate(request(1, 2), Context())
    await anext(stream)
    await engine.cleanup()
    assert [output.finish_reason async for output in stream] == [FinishReason.STOP]


async def test_never_fails() -> None:
    waiting = asyncio.create_task(EchoEngine().failed())
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
