"""`python -m benchmarks.disagg [TRACE]`: goodput of aggregated and disaggregated fleets of the same size.

Virtual time, the simulated engine's own timing, independent arrivals. Goodput is the requests per second that met both
targets, at the highest rate at which nine in ten do.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.disagg_config import DisaggBenchConfig, WorkloadName
from benchmarks.disagg_fleets import FleetPlan
from benchmarks.disagg_report import Row, goodput_table, threshold_table
from benchmarks.disagg_searches import Searches, searching
from benchmarks.disagg_workloads import Workload, make_workload
from benchmarks.goodput import Targets
from benchmarks.plots import check_plot
from dynamo.config import add_arguments, from_namespace
from dynamo.engines.mocker.transfer_model import TransferModel
from dynamo.errors import ConfigError, DynamoError
from dynamo.router.disagg import DisaggConfig

# Thresholds that are tried: --max-local-prefill-length and -ratio; --max-prefill-queue-tokens, of what it is by default
LENGTHS_AND_RATIOS = ((0, 1.0), (2048, 0.5), (2048, 1.0), (8192, 0.5))
QUEUES = (1 / 3, 2 / 3, 1.0, 10.0)
JOBS = 2


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.disagg",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("trace", metavar="TRACE", type=Path, nargs="?", default=None, help="in Mooncake's format")
    parser.add_argument("--plot", metavar="PNG", type=Path, default=None, help="draw the figures (extra `plot`)")
    parser.add_argument("--jobs", metavar="N", type=int, default=JOBS, help="processes (default: %(default)s)")
    add_arguments(DisaggBenchConfig, parser)
    namespace = parser.parse_args(argv)
    try:
        if namespace.jobs < 1:
            raise ConfigError(f"--jobs must be at least 1, not {namespace.jobs}")
        check_plot(namespace.plot)
        _measure(namespace.trace, from_namespace(DisaggBenchConfig, namespace), namespace.jobs, namespace.plot)
    except DynamoError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _measure(trace: Path | None, config: DisaggBenchConfig, jobs: int, plot: Path | None) -> None:
    workloads = list(_workloads(trace, config))
    with searching(config, jobs) as searches:
        found = {workload.title: _compare(workload, config, searches) for workload in workloads}
    if plot is not None:
        from benchmarks.disagg_plots import draw_goodput  # an extra

        draw_goodput(found, plot)


def _workloads(trace: Path | None, config: DisaggBenchConfig) -> Iterator[Workload]:
    names: Iterable[WorkloadName] = [WorkloadName(config.workload)] if config.workload else WorkloadName
    for name in names:
        if name is WorkloadName.TRACE and trace is None and config.workload is None:
            continue
        workload = make_workload(name, trace, config.seed)
        yield dataclasses.replace(
            workload,
            targets=config.targets(workload.targets),
            duration_s=config.duration_s or workload.duration_s,
        )


def _compare(workload: Workload, config: DisaggBenchConfig, searches: Searches) -> list[Row]:
    """Prints its tables; the rows of the first."""
    aggregated = searches.find(
        workload, [_plan(config, 0, size) for size in config.chunk_sizes()], workload.start_per_s
    )
    best = max(aggregated, key=lambda row: row.goodput_per_s)
    start_per_s, chunk = best.goodput_per_s or workload.start_per_s, best.plan.chunk_tokens
    conditional = config.conditional(workload.targets)
    ratios = range(1, config.workers)
    unconditional_rows = searches.find(workload, [_plan(config, p, chunk) for p in ratios], start_per_s)
    conditional_rows = searches.find(workload, [_plan(config, p, chunk, conditional) for p in ratios], start_per_s)
    rows = [*aggregated, *unconditional_rows, *conditional_rows]
    print(f"## {workload.title}: {_promise(workload.targets)}, {config.workers} workers\n")
    print(f"{goodput_table(rows, best)}\n", flush=True)
    if config.thresholds:
        winner = max(conditional_rows, key=lambda row: row.goodput_per_s)
        print(f"Goodput over the thresholds, {winner.plan.ratio}:\n")
        tried = searches.find(workload, _with_thresholds(winner.plan), winner.goodput_per_s or workload.start_per_s)
        print(f"{threshold_table(tried)}\n", flush=True)
    return rows


def _with_thresholds(plan: FleetPlan) -> list[FleetPlan]:
    """The same fleet, deciding otherwise."""
    return [
        dataclasses.replace(
            plan,
            disagg=dataclasses.replace(
                plan.disagg,
                max_local_prefill_length=length,
                max_local_prefill_ratio=ratio,
                max_prefill_queue_tokens=round(queue * plan.disagg.max_prefill_queue_tokens),
            ),
        )
        for length, ratio in LENGTHS_AND_RATIOS
        for queue in QUEUES
    ]


def _plan(config: DisaggBenchConfig, prefill_workers: int, chunk: int, disagg: DisaggConfig | None = None) -> FleetPlan:
    return FleetPlan(
        prefill_workers=prefill_workers,
        other_workers=config.workers - prefill_workers,
        chunk_tokens=chunk,
        disagg=disagg or DisaggConfig(),
        kv_tokens=config.kv_tokens,
        transfer=TransferModel(bandwidth_gb_s=config.bandwidth_gb_s),
    )


def _promise(targets: Targets) -> str:
    return f"TTFT of at most {targets.ttft_s:g} s, ITL of at most {1000 * targets.tpot_s:g} ms"


if __name__ == "__main__":
    sys.exit(main())
