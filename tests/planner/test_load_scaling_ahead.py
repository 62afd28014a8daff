"""The load policy while workers are on their way: what queues show then, and what they don't."""

from dataclasses import replace

from dynamo.planner.demand import Demand
from dynamo.planner.load_scaling import LoadPolicy
from dynamo.planner.load_signals import FleetLoad
from dynamo.planner.need import Targets
from dynamo.planner.observation import Traffic
from dynamo.planner.situation import Situation
from dynamo.protocols.model_card import WorkerType

TARGETS = Targets(ttft_s=1.0, itl_s=0.1)


class Model:
    """A worker that prefills 1000 tokens a second, and between 100 of them has 5 requests at once."""

    def prefill_s(self, prompt_tokens: float) -> float:
        return prompt_tokens / 1000

    def prefill_tokens_per_s(self, prompt_tokens: float) -> float:
        return 1000.0

    def itl_s(self, context_tokens: float, concurrency: float) -> float:
        return 0.05

    def concurrency(self, context_tokens: float, itl_s: float) -> float:
        return 10.0


def situation(*, ready: int, coming: int, waiting: float) -> Situation:
    """Ten requests a second, each 100 tokens in and 10 out: about three workers' worth."""
    return Situation(
        role=WorkerType.Aggregated,
        counted=ready + coming,
        ready=ready,
        coming=coming,
        demand=Demand(
            requests_per_s=10,
            at_least_per_s=10,
            at_most_per_s=10,
            prefill_tokens=100,
            prompt_tokens=100,
            output_tokens=10,
        ),
        traffic=Traffic(
            duration_s=5,
            requests=50,
            prompt_tokens=100,
            cached_tokens=0,
            output_tokens=10,
            ttft_s=3.0 if waiting else 0.2,
            itl_s=0.2 if waiting else 0.05,
        ),
        load=FleetLoad(running=10.0, waiting=waiting, prefill_tokens=100 * waiting, kv_usage=0.1),
    )


def test_queues_order_no_more_than_arrivals_need_while_those_start() -> None:
    policy = LoadPolicy(Model(), drain_s=60.0)
    counted = 1
    for tick in range(40):  # they do not become ready meanwhile, and the queue grows
        counted = policy.propose(situation(ready=1, coming=counted - 1, waiting=50 + tick), TARGETS, 5.0 * tick).workers
    assert 3 <= counted <= 4


def test_where_latencies_are_late_what_arrivals_can_need_at_most_is_ordered_at_once() -> None:
    late = situation(ready=2, coming=0, waiting=10)
    demand = replace(late.demand, at_least_per_s=5, at_most_per_s=30)
    wanted = LoadPolicy(Model(), drain_s=60.0).propose(replace(late, demand=demand), TARGETS, 0.0).workers
    assert wanted == 8
    calm = replace(situation(ready=2, coming=0, waiting=0), demand=demand)
    assert LoadPolicy(Model(), drain_s=60.0).propose(calm, TARGETS, 0.0).workers == 2


def test_where_as_many_as_that_are_late_one_more_is_tried_at_a_time() -> None:
    policy = LoadPolicy(Model(), drain_s=60.0)
    assert policy.propose(situation(ready=5, coming=0, waiting=10), TARGETS, 0.0).workers == 6
    assert policy.propose(situation(ready=5, coming=1, waiting=20), TARGETS, 5.0).workers == 6
    assert policy.propose(situation(ready=6, coming=0, waiting=20), TARGETS, 60.0).workers == 7


def test_what_was_not_enough_with_workers_on_their_way_may_be_enough_when_they_are_there() -> None:
    policy = LoadPolicy(Model(), drain_s=60.0)
    now_s = 0.0
    for coming in (6, 7, 7):
        policy.propose(situation(ready=1, coming=coming, waiting=100), TARGETS, now_s)
        now_s += 5.0
    assert policy.propose(situation(ready=8, coming=0, waiting=0), TARGETS, now_s).workers < 8


def test_but_what_is_not_enough_for_long_is_remembered() -> None:
    policy = LoadPolicy(Model(), drain_s=60.0)
    for tick in range(20):
        policy.propose(situation(ready=5, coming=0, waiting=10), TARGETS, 5.0 * tick)
    assert policy.propose(situation(ready=7, coming=0, waiting=0), TARGETS, 105.0).workers == 6
