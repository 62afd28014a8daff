"""When the requests of a trace arrive. Seconds from the start of the run, ascending."""

import random
from collections.abc import Sequence
from enum import StrEnum

from dynamo.simulator.trace import TraceRequest


class Arrivals(StrEnum):
    """Where arrival times come from."""

    TRACE = "trace"  # the trace's own, stretched or pressed to the rate
    POISSON = "poisson"


def arrival_times_s(
    arrivals: Arrivals, requests: Sequence[TraceRequest], rate_per_s: float | None, rng: random.Random
) -> list[float]:
    """One time per request; without a rate, at the trace's own rate."""
    rate = rate_per_s or trace_rate_per_s(requests)
    if arrivals is Arrivals.POISSON:
        return poisson_times_s(len(requests), rate, rng)
    return scaled_times_s(requests, rate)


def scaled_times_s(requests: Sequence[TraceRequest], rate_per_s: float) -> list[float]:
    """The trace's own times, bursts and lulls included, on a scale that makes `rate_per_s` the mean rate."""
    start_s, end_s = requests[0].arrival_s, requests[-1].arrival_s
    if start_s == end_s:  # no rate can spread what comes at once
        return [0.0] * len(requests)
    factor = trace_rate_per_s(requests) / rate_per_s
    return [(request.arrival_s - start_s) * factor for request in requests]


def poisson_times_s(count: int, rate_per_s: float, rng: random.Random) -> list[float]:
    """Independent arrivals: the times between them are exponentially distributed."""
    times: list[float] = []
    now_s = 0.0
    for _ in range(count):
        now_s += rng.expovariate(rate_per_s)
        times.append(now_s)
    return times


def trace_rate_per_s(requests: Sequence[TraceRequest]) -> float:
    """Requests per second over the time from the first to the last; infinite when they all come at once."""
    duration_s = requests[-1].arrival_s - requests[0].arrival_s
    return len(requests) / duration_s if duration_s else float("inf")
