"""A planner that follows a script, at work on a simulated cluster: what it gets to know, and what is done for it."""

import random
from dataclasses import dataclass, field

import pytest

from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.timing import TimingModel
from dynamo.planner.decision import Decision, Scale
from dynamo.planner.observation import Observation, Traffic
from dynamo.protocols.model_card import WorkerType
from dynamo.protocols.traffic import ModelTraffic
from dynamo.router.selection import LeastLoaded
from dynamo.simulator.cluster import Cluster
from dynamo.simulator.elastic_fleet import ElasticFleet, StartUp
from dynamo.simulator.elastic_observer import traffic_between
from dynamo.simulator.elastic_run import ElasticRecord, ElasticRun
from dynamo.simulator.router_core import SelectorCore
from dynamo.simulator.trace import TraceRequest

BLOCK_SIZE = 4
TIMING = TimingModel(prefill_ms=(0, 1, 10), decode_ms=(0, 0, 5))  # 10 ms and 1 per new token; 5 ms for decoding
ENGINE = SchedulerConfig(block_size=BLOCK_SIZE, num_blocks=1000, max_model_len=400, max_num_batched_tokens=256)
ROLE = WorkerType.Aggregated


@dataclass
class Scripted:
    """Orders `workers[i]` at tick i, and nothing after the last; keeps what it has seen."""

    workers: list[int] = field(default_factory=list)
    seen: list[Observation] = field(default_factory=list)

    def tick(self, observation: Observation) -> Decision:
        self.seen.append(observation)
        number = len(self.seen)
        wanted = self.workers[number - 1] if number <= len(self.workers) else None
        actions = () if wanted is None else (Scale(role=ROLE, workers=wanted),)
        return Decision(number=number, at_s=observation.now_s, actions=actions)


def run(
    planner: Scripted | None, requests: list[TraceRequest], times_s: list[float], *, duration_s: float = 4.0
) -> ElasticRecord:
    router = SelectorCore(LeastLoaded(random.Random(0)), 1)
    cluster = Cluster(router, 1, ENGINE, TIMING, trace_block_size=BLOCK_SIZE)
    fleets = {ROLE: ElasticFleet(cluster, ROLE, StartUp(time_s=1.5), random.Random(0))}
    return ElasticRun(cluster, fleets, planner, interval_s=1.0, duration_s=duration_s).run(requests, times_s)


def request_of(*block_ids: int, output_tokens: int) -> TraceRequest:
    return TraceRequest(
        arrival_s=0.0, prompt_tokens=len(block_ids) * BLOCK_SIZE, output_tokens=output_tokens, block_ids=block_ids
    )


def test_without_a_planner_nothing_changes() -> None:
    record = run(None, [request_of(1, output_tokens=2)], [0.5])
    assert (record.end_s, record.gpu_s, record.actions) == (4.0, 4.0, 0)


def test_what_is_ordered_is_started_and_ended() -> None:
    planner = Scripted([3, 3, 2])
    record = run(planner, [], [])
    assert [observation.now_s for observation in planner.seen] == [1.0, 2.0, 3.0, 4.0]
    fleets = [observation.fleets[ROLE] for observation in planner.seen if observation.fleets is not None]
    assert [(fleet.desired, fleet.ready, fleet.starting_s) for fleet in fleets] == [
        (1, 1, ()),
        (3, 1, (1.0, 1.0)),
        (3, 3, ()),
        (2, 2, ()),
    ]
    assert record.gpu_s == 4 + 3 + 2
    assert record.actions == 3


def test_traffic_is_what_has_happened_since_the_last_tick() -> None:
    planner = Scripted()
    run(planner, [request_of(1, 2, output_tokens=6), request_of(3, output_tokens=400 - 5)], [0.5, 1.5])
    first, second, third, *_ = [observation.traffic for observation in planner.seen]
    assert first is not None
    assert (first.duration_s, first.requests) == (1.0, 1)
    assert (first.prompt_tokens, first.cached_tokens, first.output_tokens) == (8, 0, 6)
    assert first.ttft_s == pytest.approx(0.018)
    assert first.itl_s == pytest.approx(0.005)
    assert second is not None
    assert (second.requests, second.prompt_tokens, second.output_tokens) == (1, 4, None), "it has not finished"
    assert third is not None
    assert (third.requests, third.prompt_tokens, third.ttft_s) == (0, None, None)
    assert third.itl_s == pytest.approx(0.005)


def test_loads_are_those_of_the_workers() -> None:
    planner = Scripted([2])
    run(planner, [request_of(1, output_tokens=300)], [0.5])
    loads = [fleet.loads for observation in planner.seen for fleet in (observation.fleets or {}).values()]
    assert [sorted(load) for load in loads if load is not None] == [["0"], ["0"], ["0", "1"], ["0", "1"]]
    busy = loads[0]["0"] if loads[0] else None
    assert busy is not None
    assert (busy.running_requests, busy.prefill_tokens) == (1, 0)
    assert busy.generated_tokens > 90


def test_it_goes_on_until_the_last_answer() -> None:
    planner = Scripted()
    record = run(planner, [request_of(1, output_tokens=300)], [0.5], duration_s=1.0)
    assert record.end_s == record.gpu_s == pytest.approx(0.5 + 0.014 + 299 * 0.005)
    assert [observation.now_s for observation in planner.seen] == [1.0, 2.0, 3.0], "until it sees that all have ended"


def test_means_of_nothing_are_unknown() -> None:
    nothing = ModelTraffic(model="m")
    assert traffic_between(nothing, nothing, 5.0) == Traffic(
        duration_s=5.0,
        requests=0,
        prompt_tokens=None,
        cached_tokens=None,
        output_tokens=None,
        ttft_s=None,
        itl_s=None,
    )
