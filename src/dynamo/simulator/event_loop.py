"""Time without waiting: a queue of what happens when."""

import heapq
from collections.abc import Callable

from dynamo.clock import VirtualClock

Action = Callable[[float], None]  # is given the time, seconds


class EventLoop:
    """Runs actions in the order of their times, and those of one time in the order in which they were asked for."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._queue: list[tuple[float, int, Action]] = []
        self._asked = 0

    def at(self, time_s: float, action: Action) -> None:
        """Has `action` called at `time_s`, which must not be past."""
        self._asked += 1
        heapq.heappush(self._queue, (time_s, self._asked, action))

    def run(self) -> None:
        """Until nothing is left to happen."""
        queue, clock, pop = self._queue, self._clock, heapq.heappop
        while queue:
            time_s, _, action = pop(queue)
            clock.move_to(time_s)
            action(time_s)
