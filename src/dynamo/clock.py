"""Time as a parameter: pure cores are given a Clock and never ask the system."""

from typing import Protocol


class Clock(Protocol):
    """A monotonic clock; its zero has no meaning."""

    def now_s(self) -> float:
        """Seconds since some fixed moment."""
        ...


class VirtualClock:
    """A clock that moves only when it is told to."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Moves the clock forward; ValueError when `seconds` is negative."""
        if seconds < 0:
            raise ValueError("time does not run backwards")
        self._now_s += seconds

    def move_to(self, now_s: float) -> None:
        """Moves the clock forward to exactly `now_s`, which no sum of differences would; ValueError when it is past."""
        if now_s < self._now_s:
            raise ValueError("time does not run backwards")
        self._now_s = now_s
