"""The goodput of fleets, several at a time, each run in a process of its own."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager

from benchmarks.disagg_config import DisaggBenchConfig
from benchmarks.disagg_fleets import FleetPlan, Run
from benchmarks.disagg_report import Row
from benchmarks.disagg_workloads import Workload
from benchmarks.goodput import Outcome, search


class Searches:
    """Of fleets that all get the same workloads."""

    def __init__(self, pool: ProcessPoolExecutor, threads: ThreadPoolExecutor, config: DisaggBenchConfig) -> None:
        """Each of the `threads` waits for one run at a time."""
        self._pool = pool
        self._threads = threads
        self._config = config

    def find(self, workload: Workload, plans: Sequence[FleetPlan], start_per_s: float) -> list[Row]:
        """The goodput of each of these fleets; the searches begin at about `start_per_s`."""
        return list(self._threads.map(lambda plan: self._row(workload, plan, start_per_s), plans))

    def _row(self, workload: Workload, plan: FleetPlan, start_per_s: float) -> Row:
        outcome = search(lambda rate_per_s: self._outcome(workload, plan, rate_per_s), workload.targets, start_per_s)
        print(f"{workload.title}: {plan.kind} {plan.ratio} is done", file=sys.stderr, flush=True)
        return Row(plan=plan, targets=workload.targets, outcome=outcome)

    def _outcome(self, workload: Workload, plan: FleetPlan, rate_per_s: float) -> Outcome:
        warm_up_s, seed = self._config.warm_up_s, self._config.seed
        run = Run(plan=plan, workload=workload, rate_per_s=rate_per_s, warm_up_s=warm_up_s, seed=seed)
        return self._pool.submit(run.outcome).result()


@contextmanager
def searching(config: DisaggBenchConfig, jobs: int) -> Iterator[Searches]:
    """Up to `jobs` processes; they end with the block."""
    with ProcessPoolExecutor(jobs) as pool, ThreadPoolExecutor(jobs) as threads:
        yield Searches(pool, threads, config)
