"""All points of a profile, within a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dynamo.errors import InvalidRequestError, UnavailableError
from dynamo.planner.profile import DecodePoint, PrefillPoint
from dynamo.profiling.measure import measure_decode, measure_prefill
from dynamo.profiling.prompts import Prompts
from dynamo.profiling.stream import Server, complete

_PREFILL_SHARE = 0.4  # of the time: the rest is for decode, which has more points
_WARM_UP_TOKENS = (64, 8)  # of prompt and output

Point = TypeVar("Point")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is to be measured, each ascending."""

    prompt_tokens: Sequence[int]
    context_tokens: Sequence[int]
    concurrency: Sequence[int]


class Sweep:
    """Cheap points first, so that a short time still gives a usable profile; what could not be measured is said."""

    def __init__(self, server: Server, duration_s: float, say: Callable[[str], None]) -> None:
        self._server = server
        self._prompts = Prompts()
        self._duration_s = duration_s
        self._started_s = time.perf_counter()
        self._say = say

    async def run(self, grid: Grid) -> tuple[tuple[PrefillPoint, ...], tuple[DecodePoint, ...]]:
        """Each in the order of a Profile. Raises UnavailableError when the server does not answer at all."""
        await self._warm_up()
        self._started_s = time.perf_counter()
        return await self._prefill(grid.prompt_tokens), await self._decode(grid.context_tokens, grid.concurrency)

    async def _warm_up(self) -> None:
        prompt_tokens, output_tokens = _WARM_UP_TOKENS
        try:
            async with asyncio.timeout(self._duration_s):
                await complete(self._server, self._prompts.of(prompt_tokens), output_tokens)
        except TimeoutError:
            raise UnavailableError(f"{self._server.url} has not answered within {self._duration_s:g} s") from None

    async def _prefill(self, lengths: Sequence[int]) -> tuple[PrefillPoint, ...]:
        until_s = self._started_s + _PREFILL_SHARE * self._duration_s
        points: list[PrefillPoint] = []
        for length in lengths:
            measured = measure_prefill(self._server, self._prompts, length)
            point = await self._point(f"prompts of {length} tokens", measured, until_s)
            if point is None:
                break  # longer ones take longer
            points.append(point)
            self._say(f"{length:>7} tokens  TTFT {1000 * point.ttft_s:9.2f} ms  {point.tokens_per_s:11,.0f} tokens/s")
        return tuple(points)

    async def _decode(self, contexts: Sequence[int], concurrencies: Sequence[int]) -> tuple[DecodePoint, ...]:
        until_s = self._started_s + self._duration_s
        points: list[DecodePoint] = []
        out = set[int]()  # contexts with which no more requests are possible
        for concurrency in concurrencies:
            for context in contexts:
                if any(context >= other for other in out):
                    continue
                measured = measure_decode(self._server, self._prompts, context, concurrency)
                point = await self._point(f"{concurrency} at once of {context} tokens", measured, until_s)
                if point is None:
                    out.add(context)
                    continue
                points.append(point)
                self._say(
                    f"{context:>7} context {concurrency:>4} at once  ITL {1000 * point.itl_s:9.2f} ms"
                    f"  {point.tokens_per_s:11,.0f} tokens/s"
                )
        return tuple(sorted(points, key=lambda point: (point.context_tokens, point.concurrency)))

    async def _point(self, what: str, measured: Awaitable[Point], until_s: float) -> Point | None:
        """None, having said why, when it cannot be had."""
        try:
            async with asyncio.timeout(max(0.0, until_s - time.perf_counter())):
                return await measured
        except TimeoutError:
            self._say(f"left out for lack of time: {what}")
        except (InvalidRequestError, UnavailableError) as error:
            self._say(f"left out: {what}: {error}")
        return None
