"""`python -m benchmarks.planner [day|burst|trace]`: SLA attainment against GPU time, by who decides how many workers.

Virtual time; the planner, the router and the simulated engine's scheduler are the real ones. An answer is in time when
its TTFT and the mean of its ITL are within the targets.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.goodput import Targets
from benchmarks.planner_config import PlannerBenchConfig
from benchmarks.planner_loads import Load, LoadName, make_load
from benchmarks.planner_policies import Compared, Comparison, Policy
from benchmarks.planner_report import table
from benchmarks.plots import check_plot
from dynamo.config import add_arguments, from_namespace
from dynamo.errors import ConfigError, DynamoError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planner",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "load", metavar="LOAD", nargs="?", default=LoadName.DAY.value, choices=tuple(LoadName), help="day, burst, trace"
    )
    parser.add_argument("trace", metavar="TRACE", type=Path, nargs="?", default=None, help="in Mooncake's format")
    parser.add_argument("--plot", metavar="PNG", type=Path, default=None, help="draw the fleets (extra `plot`)")
    add_arguments(PlannerBenchConfig, parser)
    namespace = parser.parse_args(argv)
    try:
        check_plot(namespace.plot)
        config = from_namespace(PlannerBenchConfig, namespace)
        policies = _policies(config)
        load = _load(LoadName(namespace.load), namespace.trace, config)
        rows = _compare(load, config, policies)
        if namespace.plot is not None:
            from benchmarks.planner_plots import draw  # an extra

            draw(load, rows, namespace.plot)
    except DynamoError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _policies(config: PlannerBenchConfig) -> list[Policy]:
    """Raises ConfigError for one that does not exist."""
    if config.policies is None:
        return list(Policy)
    names = [name.strip() for name in config.policies.split(",")]
    for name in names:
        if name not in tuple(Policy):
            raise ConfigError(f"--policies: {name!r} is not one of {', '.join(Policy)}")
    return [Policy(name) for name in names]


def _load(name: LoadName, trace: Path | None, config: PlannerBenchConfig) -> Load:
    load = make_load(name, trace, scale=config.scale, seed=config.seed)
    own = load.targets
    targets = Targets(
        ttft_s=own.ttft_s if config.ttft_s is None else config.ttft_s,
        tpot_s=own.tpot_s if config.itl_s is None else config.itl_s,
    )
    start_up_s = load.start_up_s if config.start_up_s is None else config.start_up_s
    return dataclasses.replace(load, targets=targets, start_up_s=start_up_s)


def _compare(load: Load, config: PlannerBenchConfig, policies: Sequence[Policy]) -> list[Compared]:
    """Prints the table."""
    rates = load.rates(load.start_up_s)
    mean_per_s, targets = len(load.requests) / load.duration_s, load.targets
    print(f"## {load.title}{', disaggregated' if config.disaggregated else ''}\n")
    print(
        f"{len(load.requests)} requests in {load.duration_s:.0f} s, at most {max(rates) / mean_per_s:.1f} times the"
        f" mean; TTFT of at most {targets.ttft_s:g} s, ITL of at most {1000 * targets.tpot_s:g} ms; start-up"
        f" {load.start_up_s:g} s, planner's intervals {config.interval_s:g} and {config.throughput_interval_s:g} s."
    )
    comparison = Comparison(load, config)
    print(f"{comparison.description}.\n", flush=True)
    rows: list[Compared] = []
    for policy in policies:
        rows.append(comparison.run(policy))
        print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)  # minutes may pass until the next
    print(f"{table(rows)}\n", flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
