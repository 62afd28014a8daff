"""From a trace and a configuration to figures."""

import random
from collections.abc import Sequence

from dynamo.engines.mocker.timing import TimingModel
from dynamo.simulator.arrivals import Arrivals, arrival_times_s
from dynamo.simulator.cluster import Cluster
from dynamo.simulator.config import SimulationConfig
from dynamo.simulator.modes import SimulatedMode, make_router_core
from dynamo.simulator.record import RunRecord
from dynamo.simulator.report import Summary, summarize
from dynamo.simulator.trace import TraceRequest


def simulate(config: SimulationConfig, mode: SimulatedMode, requests: Sequence[TraceRequest]) -> Summary:
    """The figures of one run. Equal arguments give equal results. Raises as run() and summarize() do."""
    return summarize(run(config, mode, requests), mode)


def run(config: SimulationConfig, mode: SimulatedMode, requests: Sequence[TraceRequest]) -> RunRecord:
    """One run. Raises ConfigError when the workers that `config` describes cannot serve all requests."""
    engine = config.engine(requests)
    times_s = arrival_times_s(Arrivals(config.arrivals), requests, config.rate, random.Random(config.seed))  # noqa: S311
    router = make_router_core(mode, config.kv_router, engine, config.workers, random.Random(config.seed + 1))  # noqa: S311
    cluster = Cluster(
        router,
        config.workers,
        engine,
        TimingModel(),
        event_latency_s=config.event_latency_s,
        trace_block_size=config.trace_block_size,
        tiers=config.tiers(),
    )
    return cluster.run(requests, times_s)
