"""The highest request rate that a fleet bears."""

from collections.abc import Callable

from dynamo.simulator.report import Summary

TTFT_P90_S_MAX = 2.0


def bears(summary: Summary) -> bool:
    """Whether nine in ten requests had their first token soon enough."""
    return summary.ttft_p90_s <= TTFT_P90_S_MAX


def highest_rate(bears_rate: Callable[[int], bool], start: int, stop: int) -> int:
    """The highest whole number up to about `stop` that `bears_rate` says yes to, 0 when there is none.

    Goes up from `start` (at least 1) in doubles until the answer is no, then halves the interval: all above a no are
    taken to be no too. A trace so short that it never is a load ends the search at `stop`.
    """
    borne, broken = 0, start
    while bears_rate(broken):
        borne, broken = broken, 2 * broken
        if borne >= stop:
            return borne
    while broken - borne > 1:
        middle = (borne + broken) // 2
        if bears_rate(middle):
            borne = middle
        else:
            broken = middle
    return borne
