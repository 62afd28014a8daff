"""Lets simulated time pass in real time."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

TIMER_S = 1e-3  # the resolution of an event loop's timers
LAG_S_MAX = 5 * TIMER_S


class Pacer:
    """Lays the durations of steps end to end and waits for the end of each.

    No step ends early. One that ends late, because timers are coarse or the event loop was busy, does not delay those
    after it, but a lag of more than a step (for short steps: of more than LAG_S_MAX) is not made good: the next step
    then begins when the late one ended.
    """

    def __init__(
        self,
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._now_s = now_s
        self._sleep = sleep
        self._end_s = now_s()  # of the latest step

    def restart(self) -> None:
        """The next step begins now."""
        self._end_s = self._now_s()

    async def step(self, duration_s: float) -> None:
        """Returns when a step of this duration, begun at the end of the one before, is over.

        The event loop gets a turn in any case, so that what one step yields leaves before what the next one does.
        """
        self._end_s += duration_s
        left_s = self._end_s - self._now_s()
        if -left_s > max(duration_s, LAG_S_MAX):
            self.restart()
        await sleep_until(self._end_s, self._now_s, self._sleep)


async def sleep_until(
    end_s: float,
    now_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Returns at that time, or a tick later; never before, and not before the event loop has had a turn."""
    await sleep(whole_ticks(end_s - now_s()))
    while (left_s := end_s - now_s()) > 0:  # timers can go off a little early
        await sleep(whole_ticks(left_s))


def whole_ticks(left_s: float) -> float:
    """So long, rounded up: uvloop rounds to the nearest tick, which may be 0, and waiting would become spinning."""
    return max(0, math.ceil(left_s / TIMER_S)) * TIMER_S
