"""The mean of what was lately."""

from collections import deque

from dynamo.planner.forecast.base import LARGEST

_WINDOW = 3  # intervals: each further one costs more by being late than it gains on noise


class MovingAverageForecaster:
    """Of the last few intervals, all alike."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_WINDOW)

    def observe(self, value: float) -> None:
        self._values.append(min(value, LARGEST))

    def forecast(self, steps: int = 1) -> float:
        return sum(self._values) / len(self._values) if self._values else 0.0
