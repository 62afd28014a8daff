"""`python -m benchmarks.planner_forecast [TRACE]`: how far the planner's forecasts are off.

Each forecaster sees a series interval by interval and says the next one and the fourth. The error is WAPE: the sum of
all absolute errors as a share of the sum of all values, from the sixth interval on. The series are a trace's requests
per second and its requests' mean lengths (Mooncake's format; left out without TRACE), and two made up from a seed: days
with noise, and bursts.
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dynamo.errors import ConfigError
from dynamo.planner.config import PREDICTORS
from dynamo.planner.forecast.make import make_forecaster
from dynamo.simulator.trace import TraceRequest, read_trace

INTERVALS_S = (180.0, 30.0)
STEPS = (1, 4)
SEED = 7
_WARM_UP = 5  # intervals that count for nobody
_DAY_S = 86_400.0
_SYNTHETIC_INTERVALS = 1920  # four days of 180 s
_MEAN_RATE_PER_S = 5.0

Series = Sequence[float]


def trace_series(requests: Sequence[TraceRequest], interval_s: float) -> Mapping[str, Series]:
    """By quantity: one value for each whole interval. One without requests has the lengths of the one before it."""
    count = int(requests[-1].arrival_s // interval_s)
    buckets: list[list[TraceRequest]] = [[] for _ in range(count)]
    for request in requests:
        if (position := int(request.arrival_s // interval_s)) < count:
            buckets[position].append(request)
    return {
        "requests/s": [len(bucket) / interval_s for bucket in buckets],
        "prompt tokens": _means([[request.prompt_tokens for request in bucket] for bucket in buckets]),
        "output tokens": _means([[request.output_tokens for request in bucket] for bucket in buckets]),
    }


def day_series(interval_s: float, rng: random.Random) -> Series:
    """Requests per second of days with a peak at noon that is five times the night, each a little other than the last.

    The noise is that of independent arrivals.
    """
    heights = [rng.uniform(0.85, 1.15) for _ in range(1 + int(_SYNTHETIC_INTERVALS * interval_s / _DAY_S))]
    values: list[float] = []
    for position in range(_SYNTHETIC_INTERVALS):
        days = position * interval_s / _DAY_S
        rate = _MEAN_RATE_PER_S * heights[int(days)] * (1 - 2 / 3 * math.cos(2 * math.pi * days))
        values.append(_arrivals(rate * interval_s, rng) / interval_s)
    return values


def burst_series(interval_s: float, rng: random.Random) -> Series:
    """Half a day of even traffic, and four times as much in bursts of up to half an hour that nothing announces."""
    values: list[float] = []
    now_s, burst_until_s, next_burst_s = 0.0, 0.0, rng.expovariate(1 / 5400)
    while now_s < _DAY_S / 2:
        if now_s >= next_burst_s:
            burst_until_s = now_s + rng.uniform(300, 1800)
            next_burst_s = burst_until_s + rng.expovariate(1 / 5400)
        rate = _MEAN_RATE_PER_S * (4 if now_s < burst_until_s else 1)
        values.append(_arrivals(rate * interval_s, rng) / interval_s)
        now_s += interval_s
    return values


def errors(name: str, series: Series) -> tuple[Sequence[float], float]:
    """WAPE at each of STEPS, and the mean CPU time of an interval in seconds."""
    forecaster = make_forecaster(name)
    forecasts: list[list[float]] = []  # by interval after which they were made
    began_s = time.process_time()
    for value in series:
        forecaster.observe(value)
        forecasts.append([forecaster.forecast(steps) for steps in STEPS])
    cpu_s = (time.process_time() - began_s) / len(series)
    return [_wape([made[at] for made in forecasts], series, steps) for at, steps in enumerate(STEPS)], cpu_s


def _wape(forecasts: Series, series: Series, steps: int) -> float:
    """`forecasts[i]` is of `series[i + steps]`."""
    pairs = [(forecasts[i - steps], series[i]) for i in range(max(_WARM_UP, steps), len(series))]
    return sum(abs(forecast - value) for forecast, value in pairs) / sum(value for _, value in pairs)


def all_series(requests: Sequence[TraceRequest] | None) -> Iterator[tuple[str, Series]]:
    for interval_s in INTERVALS_S:
        if requests is not None:
            for quantity, series in trace_series(requests, interval_s).items():
                yield f"trace, {quantity}, {interval_s:g} s", series
        yield f"days, requests/s, {interval_s:g} s", day_series(interval_s, random.Random(SEED))  # noqa: S311
        yield f"bursts, requests/s, {interval_s:g} s", burst_series(interval_s, random.Random(SEED))  # noqa: S311


def table(requests: Sequence[TraceRequest] | None) -> Iterator[str]:
    """Lines of Markdown: WAPE in percent, of the next interval / of the fourth."""
    yield "| series | " + " | ".join(PREDICTORS) + " |"
    yield "|---|" + "---|" * len(PREDICTORS)
    sums = {name: [0.0] * len(STEPS) for name in PREDICTORS}
    cpu_s, count = dict.fromkeys(PREDICTORS, 0.0), 0
    for title, series in all_series(requests):
        count += 1
        cells = []
        for name in PREDICTORS:
            wapes, spent_s = errors(name, series)
            sums[name] = [total + wape for total, wape in zip(sums[name], wapes, strict=True)]
            cpu_s[name] = max(cpu_s[name], spent_s)
            cells.append(_cell(wapes))
        yield f"| {title} | " + " | ".join(cells) + " |"
    yield "| mean of all | " + " | ".join(_cell([total / count for total in sums[name]]) for name in PREDICTORS) + " |"
    yield "| CPU per interval, at most, ms | " + " | ".join(f"{1000 * cpu_s[name]:.2f}" for name in PREDICTORS) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner_forecast", description=__doc__)
    parser.add_argument("trace", nargs="?", type=Path, metavar="TRACE", help="a file in Mooncake's format")
    arguments = parser.parse_args()
    try:
        requests = None if arguments.trace is None else read_trace(arguments.trace)
        for line in table(requests):
            print(line, flush=True)
    except ConfigError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def _cell(wapes: Sequence[float]) -> str:
    return " / ".join(f"{100 * wape:.1f}" for wape in wapes)


def _means(buckets: Sequence[Sequence[int]]) -> Series:
    means: list[float] = []
    for bucket in buckets:
        means.append(sum(bucket) / len(bucket) if bucket else means[-1] if means else 0.0)
    return means


def _arrivals(expected: float, rng: random.Random) -> int:
    """Of a Poisson process, by its normal approximation: `expected` is well above ten here."""
    return max(0, round(rng.gauss(expected, expected**0.5)))


if __name__ == "__main__":
    sys.exit(main())
