"""Fleets of simulated workers, aggregated or disaggregated, and what becomes of a workload on them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.disagg_config import PREFILL_CHUNK_TOKENS
from benchmarks.disagg_workloads import Workload
from benchmarks.goodput import Outcome
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.timing import TimingModel
from dynamo.engines.mocker.transfer_model import TransferModel
from dynamo.router.config import KvRouterConfig
from dynamo.router.disagg import DisaggConfig
from dynamo.router.routing import WorkerLimits
from dynamo.simulator.arrivals import poisson_times_s
from dynamo.simulator.cluster import Cluster
from dynamo.simulator.disagg_cluster import DisaggCluster, Fleet
from dynamo.simulator.kv_core import KvCore
from dynamo.simulator.record import RequestRecord, RunRecord
from dynamo.simulator.trace import TraceRequest, longest_context


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """How many workers of which kind, and how they are set up. All routers are KV routers."""

    prefill_workers: int  # 0: aggregated
    other_workers: int
    chunk_tokens: int  # what one step of the others may prefill
    disagg: DisaggConfig
    kv_tokens: int  # that a worker's KV cache holds
    transfer: TransferModel

    @property
    def kind(self) -> str:
        if not self.prefill_workers:
            return "aggregated"
        return "conditional" if self.disagg.conditional_disagg else "disaggregated"

    @property
    def ratio(self) -> str:
        return f"{self.prefill_workers}:{self.other_workers}" if self.prefill_workers else "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One rate on one fleet. What arrives before `warm_up_s` is not judged."""

    plan: FleetPlan
    workload: Workload
    rate_per_s: float
    warm_up_s: float
    seed: int

    def outcome(self) -> Outcome:
        """Takes some seconds. Equal runs give equal outcomes. Raises ValueError when a request was lost."""
        requests = self.workload.requests(max(1, round(self.rate_per_s * self.workload.duration_s)))
        times_s = poisson_times_s(len(requests), self.rate_per_s, random.Random(self.seed))  # noqa: S311
        record = _cluster(self, requests).run(requests, times_s)
        if not all(request.finished for request in record.requests):
            raise ValueError("a request was lost")
        judged = [request for request in record.requests if request.arrival_s >= self.warm_up_s] or record.requests
        return _outcome(self.rate_per_s, record, judged)


def _outcome(rate_per_s: float, record: RunRecord, judged: Sequence[RequestRecord]) -> Outcome:
    return Outcome(
        rate_per_s=rate_per_s,
        ttft_s=[request.ttft_s for request in judged],
        tpot_s=[request.tpot_s for request in judged],
        gap_p99_s=record.gaps.percentile_s(99),
        hit_ratio=sum(request.cached_tokens for request in judged) / sum(request.prompt_tokens for request in judged),
        local_share=sum(request.prefill is None or not request.prefill.remote for request in judged) / len(judged),
    )


def _cluster(run: Run, requests: Sequence[TraceRequest]) -> Cluster | DisaggCluster:
    plan, block_size = run.plan, run.workload.block_size
    others = _fleet(run, requests, plan.other_workers, plan.chunk_tokens)
    if not plan.prefill_workers:
        return Cluster(others.router, others.workers, others.engine, TimingModel(), trace_block_size=block_size)
    prefill = _fleet(run, requests, plan.prefill_workers, PREFILL_CHUNK_TOKENS)
    return DisaggCluster(plan.disagg, prefill, others, TimingModel(), plan.transfer, trace_block_size=block_size)


def _fleet(run: Run, requests: Sequence[TraceRequest], workers: int, chunk_tokens: int) -> Fleet:
    block_size = run.workload.block_size
    engine = SchedulerConfig(
        block_size=block_size,
        num_blocks=run.plan.kv_tokens // block_size,
        max_num_batched_tokens=chunk_tokens,
        max_model_len=longest_context(requests) + 1,
        max_num_waiting=len(requests),
    )
    limits = WorkerLimits(max_num_batched_tokens=chunk_tokens)
    rng = random.Random(run.seed + 1)  # noqa: S311
    return Fleet(router=KvCore(KvRouterConfig(), block_size, workers, limits, rng), workers=workers, engine=engine)
