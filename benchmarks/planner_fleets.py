"""Simulated fleets under a load, and what becomes of it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from benchmarks.goodput import Targets
from benchmarks.planner_config import PlannerBenchConfig
from benchmarks.planner_loads import Load
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.timing import TimingModel
from dynamo.engines.mocker.transfer_model import TransferModel
from dynamo.protocols.model_card import WorkerType
from dynamo.router.config import KvRouterConfig
from dynamo.router.disagg import DisaggConfig
from dynamo.router.routing import WorkerLimits
from dynamo.simulator.cluster import Cluster
from dynamo.simulator.disagg_cluster import DisaggCluster, Fleet
from dynamo.simulator.elastic_fleet import ElasticCluster, ElasticFleet, StartUp
from dynamo.simulator.elastic_run import Decides, ElasticRecord, ElasticRun
from dynamo.simulator.kv_core import KvCore
from dynamo.simulator.record import RequestRecord
from dynamo.simulator.report import percentile

Workers = Mapping[WorkerType, int]

_RECOVERED_SHARE = 0.9  # of the requests of a moment, that must be answered in time again
_MOMENTS = 4  # in a start-up time


@dataclass(frozen=True)
class Outcome:
    """One fleet under one load."""

    load: Load
    record: ElasticRecord

    @cached_property
    def attainment(self) -> float:
        """The share of the requests that met both targets."""
        met = sum(in_time(request, self.load.targets) for request in self.record.requests)
        return met / len(self.record.requests)

    @property
    def gpu_hours(self) -> float:
        return self.record.gpu_s / 3600

    def ttft_s(self, percent: float) -> float:
        return percentile(sorted(request.ttft_s for request in self._answered), percent)

    def itl_s(self, percent: float) -> float:
        """Of a request: the mean of its tokens."""
        return percentile(sorted(request.tpot_s for request in self._answered), percent)

    @property
    def recovery_s(self) -> float | None:
        """The longest that it took in any burst until requests were answered in time again, to the end of the burst.

        None where there was no burst; infinity where they were not before it ended.
        """
        if not self.load.bursts_s:
            return None
        return max(self._recovery_s(begin_s, end_s) for begin_s, end_s in self.load.bursts_s)

    def _recovery_s(self, begin_s: float, end_s: float) -> float:
        width_s = self.load.start_up_s / _MOMENTS
        moments = int((end_s - begin_s) / width_s)
        met, all_ = [0] * moments, [0] * moments
        for request in self.record.requests:
            moment = int((request.arrival_s - begin_s) // width_s)
            if 0 <= moment < moments:
                all_[moment] += 1
                met[moment] += in_time(request, self.load.targets)
        late = [moment for moment in range(moments) if met[moment] < _RECOVERED_SHARE * all_[moment]]
        if not late:
            return 0.0
        return float("inf") if late[-1] == moments - 1 else (late[-1] + 1) * width_s

    @property
    def _answered(self) -> Sequence[RequestRecord]:
        return [request for request in self.record.requests if request.finished]


def in_time(request: RequestRecord, targets: Targets) -> bool:
    """Whether it was answered as fast as was promised."""
    return request.finished and request.ttft_s <= targets.ttft_s and request.tpot_s <= targets.tpot_s


def timing(load: Load) -> TimingModel:
    """Of the simulated engine."""
    return TimingModel(speedup_ratio=load.speedup_ratio)


def simulate(load: Load, config: PlannerBenchConfig, workers: Workers, planner: Decides | None = None) -> Outcome:
    """`workers`: that are there at the start. Takes up to a minute. Equal arguments give equal outcomes."""
    cluster = _cluster(load, config, workers)
    start_up = StartUp(time_s=load.start_up_s, jitter=config.start_up_jitter)
    rng = random.Random(config.seed + 2)  # noqa: S311
    fleets = {role: ElasticFleet(cluster, role, start_up, rng) for role in workers}
    run = ElasticRun(cluster, fleets, planner, interval_s=config.interval_s, duration_s=load.duration_s)
    return Outcome(load=load, record=run.run(load.requests, load.times_s))


def _cluster(load: Load, config: PlannerBenchConfig, workers: Workers) -> ElasticCluster:
    engine = config.engine(load.requests)
    if WorkerType.Aggregated in workers:
        count = workers[WorkerType.Aggregated]
        return Cluster(_router(engine, config, count), count, engine, timing(load), trace_block_size=load.block_size)
    prefill, decode = (
        Fleet(router=_router(engine, config, workers[role]), workers=workers[role], engine=engine)
        for role in (WorkerType.Prefill, WorkerType.Decode)
    )
    return DisaggCluster(
        DisaggConfig(),
        prefill,
        decode,
        timing(load),
        TransferModel(bandwidth_gb_s=config.bandwidth_gb_s),
        trace_block_size=load.block_size,
    )


def _router(engine: SchedulerConfig, config: PlannerBenchConfig, workers: int) -> KvCore:
    limits = WorkerLimits(max_num_batched_tokens=engine.max_num_batched_tokens)
    return KvCore(KvRouterConfig(), engine.block_size, workers, limits, random.Random(config.seed + 1))  # noqa: S311
