"""One point of a profile."""

import asyncio
import statistics
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import TypeVar

from dynamo.errors import DynamoError, UnavailableError
from dynamo.planner.profile import DecodePoint, PrefillPoint
from dynamo.profiling.prompts import Prompts
from dynamo.profiling.stream import Completion, Server, complete

_ALONE = 3  # prompts, one after the other
_AT_ONCE = 4  # prompts that always wait for the engine, when its throughput is measured
_PROMPTS = 12
_WINDOW = 24  # tokens of each request during which all of them decode
_CHUNK_TOKENS = 2048  # that any engine prefills in one step, or more: each such step gives those who decode a token

Result = TypeVar("Result")


async def measure_prefill(server: Server, prompts: Prompts, prompt_tokens: int) -> PrefillPoint:
    """Raises as complete()."""
    alone = [await complete(server, prompts.of(prompt_tokens), 1) for _ in range(_ALONE)]
    waiting = iter([prompts.of(prompt_tokens) for _ in range(_PROMPTS)])
    started_s = time.perf_counter()
    await _all(_one_after_the_other(server, waiting) for _ in range(_AT_ONCE))
    elapsed_s = time.perf_counter() - started_s
    return PrefillPoint(
        prompt_tokens=prompt_tokens,
        ttft_s=statistics.median(each.ttft_s for each in alone),
        tokens_per_s=_PROMPTS * prompt_tokens / elapsed_s,
    )


async def _all(work: Iterable[Coroutine[None, None, Result]]) -> Sequence[Result]:
    """What they return; the first error ends the others and is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except* DynamoError as errors:
        first = errors
    else:
        return [task.result() for task in tasks]
    raise next(_leaves(first))


def _leaves(group: BaseExceptionGroup[DynamoError]) -> Iterator[DynamoError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _one_after_the_other(server: Server, prompts: Iterator[Sequence[int]]) -> None:
    for prompt in prompts:
        await complete(server, prompt, 1)


def output_tokens(context_tokens: int, concurrency: int) -> int:
    """Enough that the first request still decodes when the last one has its prompt computed, and a window after it."""
    return _WINDOW + 4 + concurrency * -(-context_tokens // _CHUNK_TOKENS)


async def measure_decode(server: Server, prompts: Prompts, context_tokens: int, concurrency: int) -> DecodePoint:
    """Looks only at the time in which all requests decode, which is at the end of their outputs.

    Raises as complete(); UnavailableError too when they did not all decode at once.
    """
    outputs = output_tokens(context_tokens, concurrency)
    prompt_tokens = context_tokens - outputs + _WINDOW // 2
    if prompt_tokens < 1:
        raise UnavailableError(f"a context of {context_tokens} tokens is too short for {concurrency} at once")
    itl_s = _itl_s(await _all(complete(server, prompts.of(prompt_tokens), outputs) for _ in range(concurrency)))
    return DecodePoint(
        context_tokens=context_tokens, concurrency=concurrency, itl_s=itl_s, tokens_per_s=concurrency / itl_s
    )


def _itl_s(answers: Sequence[Completion]) -> float:
    start_s = max(answer.events_s[0] for answer in answers)
    end_s = min(answer.events_s[-1] for answer in answers)
    gaps = [gap_s for answer in answers for gap_s in _gap(answer, start_s, end_s)]
    if len(gaps) < len(answers):
        raise UnavailableError("they did not all decode at once: the engine takes fewer, or memory was short")
    if (mean_s := statistics.mean(gaps)) <= 0:
        raise UnavailableError("all tokens came at once: there is no time between them to be measured")
    return mean_s


def _gap(answer: Completion, start_s: float, end_s: float) -> Sequence[float]:
    """The mean time between two tokens between these times, if there were enough. An event may hold several."""
    within = [event_s for event_s in answer.events_s if start_s <= event_s <= end_s]
    if len(within) < _WINDOW // 4:
        return ()
    tokens_per_event = max(1.0, answer.tokens / len(answer.events_s))
    return ((within[-1] - within[0]) / (len(within) - 1) / tokens_per_event,)
