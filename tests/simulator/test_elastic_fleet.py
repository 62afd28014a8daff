"""Workers come and go while requests arrive: GPU time by hand, and nothing lost where that cannot be done."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.timing import TimingModel
from dynamo.engines.mocker.transfer_model import TransferModel
from dynamo.protocols.model_card import WorkerType
from dynamo.router.config import KvRouterConfig
from dynamo.router.disagg import DisaggConfig
from dynamo.router.routing import WorkerLimits
from dynamo.router.selection import LeastLoaded
from dynamo.simulator.cluster import Cluster
from dynamo.simulator.disagg_cluster import DisaggCluster, Fleet
from dynamo.simulator.elastic_fleet import ElasticCluster, ElasticFleet, StartUp
from dynamo.simulator.kv_core import KvCore
from dynamo.simulator.record import RequestRecord
from dynamo.simulator.router_core import RouterCore, SelectorCore
from dynamo.simulator.trace import TraceRequest

BLOCK_SIZE = 4
TIMING = TimingModel(prefill_ms=(0, 1, 10), decode_ms=(0, 0, 5))  # 10 ms and 1 per new token; 5 ms for decoding
ENGINE = SchedulerConfig(block_size=BLOCK_SIZE, num_blocks=1000, max_model_len=400, max_num_batched_tokens=256)
SLOW = TransferModel(bandwidth_gb_s=1, bytes_per_token=1_000_000, latency_ms=2)  # 1 ms per token
AGGREGATED, PREFILL, DECODE = WorkerType.Aggregated, WorkerType.Prefill, WorkerType.Decode
A_SECOND = StartUp(time_s=1.0)
Step = tuple[float, WorkerType, int | None]  # when, which fleet, how many workers from then on; None: one is lost


def request_of(*block_ids: int, output_tokens: int = 1) -> TraceRequest:
    return TraceRequest(
        arrival_s=0.0, prompt_tokens=len(block_ids) * BLOCK_SIZE, output_tokens=output_tokens, block_ids=block_ids
    )


def kv_router(workers: int, config: KvRouterConfig | None = None) -> KvCore:
    limits = WorkerLimits(max_num_batched_tokens=ENGINE.max_num_batched_tokens)
    return KvCore(config or KvRouterConfig(), BLOCK_SIZE, workers, limits, random.Random(0))


def aggregated(workers: int, router: RouterCore | None = None) -> Cluster:
    return Cluster(router or kv_router(workers), workers, ENGINE, TIMING, trace_block_size=BLOCK_SIZE)


def disaggregated(prefill_workers: int, decode_workers: int) -> DisaggCluster:
    prefill, decode = (
        Fleet(router=kv_router(workers), workers=workers, engine=ENGINE)
        for workers in (prefill_workers, decode_workers)
    )
    return DisaggCluster(DisaggConfig(), prefill, decode, TIMING, SLOW, trace_block_size=BLOCK_SIZE)


def run(
    cluster: ElasticCluster,
    requests: Sequence[TraceRequest],
    times_s: Sequence[float],
    steps: Sequence[Step] = (),
    start_up: StartUp = A_SECOND,
    gpus: int = 1,
) -> tuple[dict[WorkerType, ElasticFleet], Sequence[RequestRecord]]:
    """The fleets after the run, and what became of the requests."""
    rng = random.Random(0)
    fleets = {role: ElasticFleet(cluster, role, start_up, rng, gpus=gpus) for role in cluster.pools}

    def take(step: Step, now_s: float) -> None:
        _, role, workers = step
        if workers is None:
            fleets[role].kill_one(now_s)
        else:
            fleets[role].scale(workers, now_s)

    for step in steps:
        cluster.loop.at(step[0], lambda now_s, step=step: take(step, now_s))  # type: ignore[misc]
    return fleets, cluster.run(requests, times_s).requests


def check_nothing_is_lost(requests: Sequence[TraceRequest], records: Sequence[RequestRecord]) -> None:
    assert all(record.finished for record in records)
    assert [record.output_tokens for record in records] == [request.output_tokens for request in requests]


def test_a_worker_holds_its_gpus_from_its_order_on() -> None:
    fleets, _ = run(aggregated(1), [], [], [(2.0, AGGREGATED, 3)], gpus=2)
    assert fleets[AGGREGATED].gpu_s(10.0) == 2 * (10 + 8 + 8)
    assert fleets[AGGREGATED].gpu_s(1.0) == 2


def test_and_takes_requests_when_it_has_started() -> None:
    requests = [request_of(number, output_tokens=100) for number in range(3)]
    _, records = run(aggregated(1), requests, [0.1, 1.0, 1.5], [(0.3, AGGREGATED, 2)])
    assert [record.worker for record in records] == [0, 0, 1]


def test_a_worker_without_requests_is_gone_at_once() -> None:
    fleets, _ = run(aggregated(3), [], [], [(4.0, AGGREGATED, 1)])
    assert fleets[AGGREGATED].spans_s(10.0) == [(0.0, 4.0), (0.0, 4.0), (0.0, 10.0)]


def test_a_drained_worker_ends_what_it_has_and_gets_no_more() -> None:
    requests = [request_of(number, output_tokens=101) for number in range(3)]
    fleets, records = run(aggregated(2), requests, [0.0, 0.0, 0.1], [(0.05, AGGREGATED, 1)])
    check_nothing_is_lost(requests, records)
    assert sorted(record.worker for record in records[:2]) == [0, 1]
    assert records[2].worker == 0, "the younger one goes"
    (drained,) = [span for span in fleets[AGGREGATED].spans_s(60.0) if span[1] < 60]
    assert drained == pytest.approx((0.0, 0.014 + 100 * 0.005))


def test_a_worker_in_its_last_step_is_not_gone_before_its_end() -> None:
    requests = [request_of(1), request_of(2)]
    fleets, records = run(aggregated(2), requests, [0.0, 0.0], [(0.013, AGGREGATED, 1)])
    assert fleets[AGGREGATED].spans_s(1.0)[0] == pytest.approx((0.0, 0.014))
    check_nothing_is_lost(requests, records)


def test_those_that_still_start_go_first() -> None:
    fleets, _ = run(aggregated(1), [], [], [(1.0, AGGREGATED, 3), (1.5, AGGREGATED, 1)])
    fleet = fleets[AGGREGATED]
    assert fleet.spans_s(9.0) == [(1.0, 1.5), (1.0, 1.5), (0.0, 9.0)]
    assert (fleet.state(9.0).ready, fleet.state(9.0).starting_s) == (1, ())


def test_one_that_never_becomes_ready_holds_its_gpus() -> None:
    fleets, _ = run(aggregated(1), [], [], [(1.0, AGGREGATED, 2)], StartUp(time_s=1.0, failures=1.0))
    state = fleets[AGGREGATED].state(100.0)
    assert (state.desired, state.ready, state.starting_s) == (2, 1, (99.0,))
    assert fleets[AGGREGATED].gpu_s(100.0) == 100 + 99


def test_a_lost_worker_is_replaced_and_others_go_on_with_its_requests() -> None:
    requests = [request_of(number, output_tokens=41) for number in range(2)]
    fleets, records = run(aggregated(2), requests, [0.0, 0.0], [(0.1, AGGREGATED, None)])
    check_nothing_is_lost(requests, records)
    assert {record.worker for record in records} == {1}
    assert fleets[AGGREGATED].spans_s(5.0) == [(0.0, 0.1), (0.0, 5.0), (0.1, 5.0)]
    lost = max(records, key=lambda record: record.last_token_s)
    # 17 tokens were there at 94 ms; the next needs what was going on at the other one, and its prompt and them anew.
    assert lost.ttft_s == pytest.approx(0.014)
    assert lost.last_token_s > 0.014 + 40 * 0.005


def test_without_any_worker_requests_wait_for_the_next() -> None:
    requests = [request_of(number, output_tokens=5) for number in range(4)]
    steps: list[Step] = [(0.05, AGGREGATED, None)]
    for cluster in (aggregated(1), aggregated(1, SelectorCore(LeastLoaded(random.Random(0)), 1))):
        _, records = run(cluster, requests, [0.04, 0.06, 0.07, 2.0], steps)
        check_nothing_is_lost(requests, records)
        assert all(1.05 <= record.first_token_s < 1.2 for record in records[:3])


def test_requests_that_a_router_holds_back_outlive_its_last_worker() -> None:
    requests = [request_of(*range(100 * number, 100 * number + 64), output_tokens=5) for number in range(4)]
    cluster = aggregated(1, kv_router(1, KvRouterConfig(router_queue_threshold=0.5)))
    _, records = run(cluster, requests, [0.0, 0.01, 0.02, 0.03], [(0.05, AGGREGATED, None)])
    check_nothing_is_lost(requests, records)
    assert all(record.first_token_s > 1.05 for record in records)


def test_a_prefill_worker_stays_until_what_it_holds_has_been_fetched() -> None:
    requests = [request_of(1, 2)]
    fleets, records = run(disaggregated(1, 1), requests, [0.0], [(0.01, PREFILL, 0)])
    check_nothing_is_lost(requests, records)
    fetched_s = 0.018 + 0.0005 + 0.002 + 0.007
    assert fleets[PREFILL].gpu_s(9.0) == pytest.approx(fetched_s)


def test_without_prefill_workers_decode_workers_do_both() -> None:
    requests = [request_of(1, 2), request_of(3, 4)]
    _, records = run(disaggregated(1, 1), requests, [0.0, 1.0], [(0.5, PREFILL, 0)])
    assert records[1].ttft_s == pytest.approx(0.018)


def test_what_a_lost_prefill_worker_held_is_prefilled_again() -> None:
    requests = [request_of(1, 2, output_tokens=3), request_of(3, 4, output_tokens=3)]  # each on one worker
    _, undisturbed = run(disaggregated(2, 2), requests, [0.0, 0.0])
    for lost_s in (0.01, 0.0182, 0.025):  # prefilling; with the handoff under way; half fetched
        _, records = run(disaggregated(2, 2), requests, [0.0, 0.0], [(lost_s, PREFILL, None)])
        check_nothing_is_lost(requests, records)
        delays_s = [record.ttft_s - before.ttft_s for record, before in zip(records, undisturbed, strict=True)]
        assert min(delays_s) == pytest.approx(0), "of the other worker's"
        assert max(delays_s) > 0.009


ARRIVALS = st.lists(
    st.tuples(st.floats(0, 2.0), st.integers(1, 4), st.integers(0, 6), st.integers(1, 40)), min_size=1, max_size=25
)
TIMES = st.floats(0, 3.0)
AGGREGATED_STEPS = st.lists(st.tuples(TIMES, st.just(AGGREGATED), st.one_of(st.none(), st.integers(1, 4))), max_size=8)
DISAGGREGATED_STEPS = st.lists(
    st.one_of(
        st.tuples(TIMES, st.just(PREFILL), st.one_of(st.none(), st.integers(0, 3))),
        st.tuples(TIMES, st.just(DECODE), st.one_of(st.none(), st.integers(1, 3))),
    ),
    max_size=8,
)


def requests_of(arrivals: list[tuple[float, int, int, int]]) -> list[TraceRequest]:
    return [
        request_of(prefix, *range(100 * number, 100 * number + own), output_tokens=output_tokens)
        for number, (_, prefix, own, output_tokens) in enumerate(arrivals, 1)
    ]


@settings(deadline=None, max_examples=80)
@given(ARRIVALS, AGGREGATED_STEPS, st.sampled_from([None, 0.1]))
def test_whatever_comes_and_goes_every_request_gets_its_tokens(
    arrivals: list[tuple[float, int, int, int]], steps: list[Step], threshold: float | None
) -> None:
    arrivals.sort()
    requests = requests_of(arrivals)
    cluster = aggregated(2, kv_router(2, KvRouterConfig(router_queue_threshold=threshold)))
    fleets, records = run(cluster, requests, [arrival[0] for arrival in arrivals], steps, StartUp(time_s=0.5, jitter=1))
    check_nothing_is_lost(requests, records)
    state = fleets[AGGREGATED].state(10.0)
    assert (state.ready, state.draining, state.starting_s) == (state.desired, 0, ())


@settings(deadline=None, max_examples=80)
@given(ARRIVALS, DISAGGREGATED_STEPS)
def test_and_so_it_does_where_prefill_and_decode_are_apart(
    arrivals: list[tuple[float, int, int, int]], steps: list[Step]
) -> None:
    arrivals.sort()
    requests = requests_of(arrivals)
    cluster = disaggregated(1, 2)
    fleets, records = run(cluster, requests, [arrival[0] for arrival in arrivals], steps, StartUp(time_s=0.5, jitter=1))
    check_nothing_is_lost(requests, records)
    assert cluster.held == 0
    for fleet in fleets.values():
        assert (fleet.state(10.0).ready, fleet.state(10.0).draining) == (fleet.desired, 0)


def test_equal_seeds_give_equal_runs() -> None:
    requests = [request_of(number, output_tokens=20) for number in range(40)]
    times_s = [0.05 * number for number in range(40)]
    steps: list[Step] = [(0.3, AGGREGATED, 4), (1.2, AGGREGATED, None), (1.5, AGGREGATED, 2)]
    start_up = StartUp(time_s=0.5, jitter=0.5, failures=0.2)

    def once() -> tuple[float, list[float]]:
        fleets, records = run(aggregated(1), requests, times_s, steps, start_up)
        return fleets[AGGREGATED].gpu_s(5.0), [record.last_token_s for record in records]

    assert once() == once()
