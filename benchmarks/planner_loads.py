"""What the fleets are asked in benchmarks/planner.py: a day, a recorded hour, bursts."""

import bisect
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from benchmarks.disagg_workloads import Lognormal
from benchmarks.goodput import Targets
from dynamo.errors import ConfigError
from dynamo.simulator.trace import BLOCK_SIZE, TraceRequest, read_trace

_PROMPT_TOKENS, _OUTPUT_TOKENS = 1000, 100  # means
_BLOCK_SIZE = 64  # of Lognormal
_STEPS = 2000  # the rate is constant within one; of the whole load
_DAY_H = 24.0


class LoadName(StrEnum):
    """Those that there are."""

    DAY = "day"
    TRACE = "trace"
    BURST = "burst"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests and when they come, what is promised to them, and how fast fleets can follow."""

    title: str
    requests: Sequence[TraceRequest]
    times_s: Sequence[float]
    duration_s: float
    block_size: int  # of the requests' block ids
    speedup_ratio: float  # of the simulated engine
    targets: Targets
    start_up_s: float
    bursts_s: Sequence[tuple[float, float]] = ()  # from when to when

    def rates(self, width_s: float) -> list[float]:
        """Arrivals per second in windows of that width."""
        counts = [0] * math.ceil(self.duration_s / width_s)
        for time_s in self.times_s:
            counts[min(int(time_s / width_s), len(counts) - 1)] += 1
        return [count / width_s for count in counts]


def make_load(name: LoadName, trace: Path | None, *, scale: float, seed: int) -> Load:
    """Equal arguments give equal loads. `scale`: how long it is, as a share of what it usually is.

    Raises ConfigError for TRACE without a trace, or with a file that is none.
    """
    match name:
        case LoadName.DAY:
            return _day(scale, seed)
        case LoadName.BURST:
            return _bursts(scale, seed)
        case LoadName.TRACE:
            if trace is None:
                raise ConfigError("name a file in Mooncake's format")
            return _recorded(trace, scale)


def day_shape(hour: float) -> float:
    """The load at an hour of the day, over its mean: low at night, high at noon, a little less in the evening."""
    return math.exp(_swing(hour)) / _MEAN_SWING


def _swing(hour: float) -> float:
    turn = 2 * math.pi * hour / _DAY_H
    return 1.2 * math.cos(turn - 2 * math.pi * 15.5 / _DAY_H) + 0.7 * math.cos(2 * turn - 4 * math.pi * 10 / _DAY_H)


_MEAN_SWING = sum(math.exp(_swing(_DAY_H * step / _STEPS)) for step in range(_STEPS)) / _STEPS


def _day(scale: float, seed: int) -> Load:
    """24 hours pressed into two; start-up and the planner's intervals are not, so that it is hard to follow."""
    duration_s, mean_per_s = 7200.0 * scale, 7.0
    rng = random.Random(seed)  # noqa: S311
    noise = _wandering(rng, sigma=0.06, memory_steps=_STEPS / _DAY_H / 4)
    rates = [mean_per_s * day_shape(_DAY_H * step / _STEPS) * noise[step] for step in range(_STEPS)]
    times_s = _poisson_times_s(rates, duration_s, rng)
    return Load(
        title=f"a day within {duration_s / 3600:g} hours",
        requests=Lognormal(_PROMPT_TOKENS, _OUTPUT_TOKENS, seed)(len(times_s)),
        times_s=times_s,
        duration_s=duration_s,
        block_size=_BLOCK_SIZE,
        speedup_ratio=0.1,
        targets=Targets(ttft_s=1.5, tpot_s=0.2),
        start_up_s=60.0,
    )


def _bursts(scale: float, seed: int) -> Load:
    """Five calm minutes, five with four times the load, again and again; in real time."""
    calm_per_s, calm_s, burst_s, cycles = 2.5, 300.0, 300.0, max(1, round(3 * scale))
    begins = [cycle * (calm_s + burst_s) + calm_s for cycle in range(cycles)]
    duration_s = cycles * (calm_s + burst_s) + calm_s
    bursts_s = [(begin_s, begin_s + burst_s) for begin_s in begins]
    rng = random.Random(seed)  # noqa: S311
    step_s = duration_s / _STEPS
    rates = [calm_per_s * (4 if _within(bursts_s, step * step_s) else 1) for step in range(_STEPS)]
    times_s = _poisson_times_s(rates, duration_s, rng)
    return Load(
        title="bursts of four times the load",
        requests=Lognormal(_PROMPT_TOKENS, _OUTPUT_TOKENS, seed)(len(times_s)),
        times_s=times_s,
        duration_s=duration_s,
        block_size=_BLOCK_SIZE,
        speedup_ratio=0.1,
        targets=Targets(ttft_s=1.5, tpot_s=0.2),
        start_up_s=60.0,
        bursts_s=bursts_s,
    )


def _recorded(trace: Path, scale: float) -> Load:
    """The trace's own requests at its own times, in real time."""
    requests = read_trace(trace)
    requests = requests[: max(1, round(len(requests) * scale))]
    start_s = requests[0].arrival_s
    times_s = [request.arrival_s - start_s for request in requests]
    return Load(
        title=trace.stem,
        requests=requests,
        times_s=times_s,
        duration_s=times_s[-1],
        block_size=BLOCK_SIZE,
        speedup_ratio=0.3,
        targets=Targets(ttft_s=12.0, tpot_s=0.15),
        start_up_s=60.0,
    )


def _wandering(rng: random.Random, *, sigma: float, memory_steps: float) -> list[float]:
    """Factors around 1 that change slowly: their logarithms are an autoregressive process of the first order."""
    kept = math.exp(-1 / memory_steps)
    step: Callable[[float, float], float] = lambda last, _: (  # noqa: E731
        kept * last + math.sqrt(1 - kept**2) * rng.gauss(0, sigma)
    )
    return [math.exp(value) for value in itertools.accumulate(range(_STEPS), step, initial=rng.gauss(0, sigma))]


def _poisson_times_s(rates: Sequence[float], duration_s: float, rng: random.Random) -> list[float]:
    """Independent arrivals at rates that follow each other, each for an equal part of the time."""
    step_s = duration_s / len(rates)
    expected = [0.0, *itertools.accumulate(rate * step_s for rate in rates)]  # arrivals until the end of each step
    times_s: list[float] = []
    arrived = rng.expovariate(1.0)
    while arrived < expected[-1]:
        step = bisect.bisect_right(expected, arrived) - 1
        times_s.append((step + (arrived - expected[step]) / (rates[step] * step_s)) * step_s)
        arrived += rng.expovariate(1.0)
    return times_s


def _within(spans_s: Sequence[tuple[float, float]], time_s: float) -> bool:
    return any(begin_s <= time_s < end_s for begin_s, end_s in spans_s)
