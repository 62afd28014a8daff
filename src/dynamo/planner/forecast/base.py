"""What forecasts one number."""

import math
from typing import Protocol

# Traffic beyond this is none. What is kept is cut off here, so that no sum or square of it can overflow.
LARGEST = 1e15


class Forecaster(Protocol):
    """Of one quantity, seen once per interval."""

    def observe(self, value: float) -> None:
        """The quantity in the interval that has just ended: finite, at least 0."""
        ...

    def forecast(self, steps: int = 1) -> float:
        """The quantity `steps` intervals later (at least 1): finite, at least 0; 0 before anything was seen."""
        ...


def plausible(forecast: float, *, last: float, peak: float) -> float:
    """A model's forecast, kept between 0 and twice the `peak` of what it has seen; `last` in place of no number.

    A model that has found an exponential in a burst would otherwise order the whole cluster.
    """
    return min(max(forecast, 0.0), 2 * peak) if math.isfinite(forecast) else last
