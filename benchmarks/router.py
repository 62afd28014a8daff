"""`python -m benchmarks.router TRACE`: what each kind of router makes of a trace, in virtual time."""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.plots import check_plot
from benchmarks.router_capacity import TTFT_P90_S_MAX, bears, highest_rate
from benchmarks.router_runs import Curve, Runs, running
from dynamo.config import add_arguments, from_namespace
from dynamo.errors import ConfigError, DynamoError
from dynamo.simulator.config import SimulationConfig
from dynamo.simulator.modes import SimulatedMode
from dynamo.simulator.report import Summary, table
from dynamo.simulator.trace import TraceRequest, best_hit_ratio, distinct_blocks, longest_context, read_trace

FLEETS = (4, 8, 16, 64)  # workers
JOBS_MAX = 2
RATE_PER_WORKER_MAX = 64  # requests/s, far more than a worker can bear
SHARE_OF_CAPACITY = 0.8
SMALL_CACHE_SHARE = 0.1  # of the trace's blocks, in the whole fleet
SMALL_CACHE_LOAD = 0.5  # of the lowest capacity: what runs at once has to fit in
CURVE_SHARES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25)  # of the highest capacity


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.router", description=__doc__, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("trace", metavar="TRACE", type=Path, help="a file in Mooncake's format")
    parser.add_argument("--plot", metavar="PNG", type=Path, default=None, help="draw the curves (extra `plot`)")
    parser.add_argument("--jobs", metavar="N", type=int, default=JOBS_MAX, help="processes (default: %(default)s)")
    add_arguments(SimulationConfig, parser)
    namespace = parser.parse_args(argv)
    try:
        if namespace.jobs < 1:
            raise ConfigError(f"--jobs must be at least 1, not {namespace.jobs}")
        check_plot(namespace.plot)
        _measure(namespace.trace, from_namespace(SimulationConfig, namespace), namespace.jobs, namespace.plot)
    except DynamoError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _measure(trace: Path, config: SimulationConfig, jobs: int, plot: Path | None) -> None:
    requests = read_trace(trace, limit=config.limit, block_size=config.trace_block_size)
    modes = config.modes()
    with running(trace, config, jobs) as runs:
        capacities = _capacities(runs, modes, config.workers)
        best_per_s = max(capacities.values())
        point_per_s = SHARE_OF_CAPACITY * best_per_s
        _show(
            f"At {SHARE_OF_CAPACITY:.0%} of the best capacity; one endless cache would hit"
            f" {100 * best_hit_ratio(requests, config.trace_block_size):.2f} %",
            runs.compare(modes, [point_per_s], workers=config.workers),
        )
        _small_cache(runs, modes, config, requests, SMALL_CACHE_LOAD * min(capacities.values()))
        for workers in FLEETS:
            rate_per_s = point_per_s * workers / config.workers
            _show(f"{workers} workers", runs.compare(modes, [rate_per_s], workers=workers))
        curves = _curves(runs, modes, config.workers, best_per_s)
    if plot is not None:
        _draw(curves, requests, config, plot)


def _capacities(runs: Runs, modes: Sequence[SimulatedMode], workers: int) -> dict[SimulatedMode, int]:
    with ThreadPoolExecutor(len(modes)) as searches:  # each waits for one run at a time
        capacities = dict(zip(modes, searches.map(lambda mode: _capacity(runs, mode, workers), modes), strict=True))
    print(f"## Capacity: requests/s with a TTFT p90 of at most {TTFT_P90_S_MAX:.0f} s, {workers} workers\n")
    print("| router | requests/s | against the first |\n|---|--:|--:|")
    first = capacities[modes[0]]
    for mode, capacity in capacities.items():
        print(f"| {mode} | {capacity} | {capacity / first if first else 0:.2f} |")
    print(flush=True)
    return capacities


def _capacity(runs: Runs, mode: SimulatedMode, workers: int) -> int:
    def bears_rate(rate_per_s: int) -> bool:
        (summary,) = runs.compare([mode], [rate_per_s], workers=workers)
        return bears(summary)

    return highest_rate(bears_rate, start=workers, stop=RATE_PER_WORKER_MAX * workers)


def _curves(runs: Runs, modes: Sequence[SimulatedMode], workers: int, best_per_s: float) -> dict[SimulatedMode, Curve]:
    rates = [round(share * best_per_s, 1) for share in CURVE_SHARES]
    _show("Over the request rate", runs.compare(modes, rates, workers=workers))
    return {mode: runs.curve(mode, rates, workers=workers) for mode in modes}


def _small_cache(
    runs: Runs,
    modes: Sequence[SimulatedMode],
    config: SimulationConfig,
    requests: Sequence[TraceRequest],
    rate_per_s: float,
) -> None:
    distinct = distinct_blocks(requests)
    share = round(SMALL_CACHE_SHARE * distinct / config.workers)
    blocks = max(share, -(-longest_context(requests) // config.block_size))  # a short trace's tenth holds no prompt
    _show(
        f"Small cache: {blocks} blocks per worker, in all {blocks * config.workers / distinct:.0%} of the trace's",
        runs.compare(modes, [rate_per_s], workers=config.workers, blocks=blocks),
    )


def _show(title: str, summaries: Sequence[Summary]) -> None:
    print(f"## {title}\n\n{table(summaries)}\n", flush=True)


def _draw(
    curves: dict[SimulatedMode, Curve], requests: Sequence[TraceRequest], config: SimulationConfig, path: Path
) -> None:
    from benchmarks.router_plots import draw_curves  # an extra

    title = f"{len(requests):,} requests, {config.workers} workers"
    draw_curves(curves, best_hit_ratio(requests, config.trace_block_size), title, path)


if __name__ == "__main__":
    sys.exit(main())
