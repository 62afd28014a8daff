"""The highest number with which something holds that holds up to some number, and not beyond. Pure."""

from collections.abc import Callable

_HALVINGS = 50  # more than a float has digits for


def highest(low: float, high: float, holds: Callable[[float], bool]) -> float:
    """Between `low`, with which it is taken to hold, and `high`, with which it is taken not to."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
