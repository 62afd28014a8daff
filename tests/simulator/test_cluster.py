"""Simulated clusters: time passes as the mocker's does, and routers are told what they would be told."""

from collections.abc import Collection
from dataclasses import dataclass, field

import pytest

from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.timing import TimingModel
from dynamo.protocols.kv_events import BlockRemoved, BlockStored, KvEventBatch
from dynamo.simulator.cluster import Cluster
from dynamo.simulator.record import RunRecord
from dynamo.simulator.router_core import Placement
from dynamo.simulator.trace import TraceRequest
from dynamo.tokens import TokenArray

BLOCK_SIZE = 4
TIMING = TimingModel(prefill_ms=(0, 1, 10), decode_ms=(0, 0, 5))  # 10 ms and 1 per new token; 5 ms for decoding
ENGINE = SchedulerConfig(block_size=BLOCK_SIZE, num_blocks=1000, max_model_len=400, max_num_batched_tokens=256)


@dataclass
class Scripted:
    """A router that sends request i to `workers[i]` and notes down what it is told, with the time in ms."""

    workers: list[int]
    wants_cache_events: bool = True
    told: list[tuple[float, str, int]] = field(default_factory=list)
    batches: list[KvEventBatch] = field(default_factory=list)
    held_back: int = 0  # so many of the first wait until one ends
    _placed: list[Placement] = field(default_factory=list)
    _waiting: list[Placement] = field(default_factory=list)

    def set_workers(self, workers: Collection[int], now_s: float) -> None:
        raise NotImplementedError

    def submit(self, request_id: int, token_ids: TokenArray, now_s: float, *, prefilled: bool) -> None:
        placement = Placement(request_id, self.workers[request_id])
        (self._waiting if request_id and request_id <= self.held_back else self._placed).append(placement)

    def first_token(self, request_id: int, now_s: float) -> None:
        self._note(now_s, "first", request_id)

    def output(self, request_id: int, tokens: int, now_s: float) -> None:
        self._note(now_s, f"+{tokens}", request_id)

    def free(self, request_id: int, now_s: float) -> None:
        self._note(now_s, "free", request_id)
        self._placed += self._waiting
        self._waiting.clear()

    def cache_changed(self, worker: int, batch: KvEventBatch) -> None:
        self.batches.append(batch)

    def take_placed(self) -> list[Placement]:
        placed, self._placed = self._placed, []
        return placed

    def _note(self, now_s: float, what: str, request_id: int) -> None:
        self.told.append((round(1000 * now_s, 6), what, request_id))


def request_of(*block_ids: int, output_tokens: int = 1) -> TraceRequest:
    return TraceRequest(
        arrival_s=0.0, prompt_tokens=len(block_ids) * BLOCK_SIZE, output_tokens=output_tokens, block_ids=block_ids
    )


def run(
    router: Scripted, requests: list[TraceRequest], times_s: list[float], engine: SchedulerConfig = ENGINE
) -> RunRecord:
    cluster = Cluster(router, max(router.workers) + 1, engine, TIMING, trace_block_size=BLOCK_SIZE)
    return cluster.run(requests, times_s)


def test_outputs_are_due_when_their_step_ends() -> None:
    router = Scripted([0])
    record = run(router, [request_of(1, 2, output_tokens=6)], [2.0])
    (request,) = record.requests
    assert request.ttft_s == pytest.approx(0.018)  # 8 new tokens
    assert request.latency_s == pytest.approx(0.018 + 5 * 0.005)
    assert (record.gaps.mean_s(), record.gaps.counts.total()) == (0.005, 5)
    assert router.told == [(2018, "first", 0), (2033, "+4", 0), (2043, "free", 0)]


def test_a_request_that_comes_during_a_step_waits_for_its_end() -> None:
    record = run(Scripted([0, 0]), [request_of(1, 2, output_tokens=2), request_of(3)], [0.0, 0.001])
    assert record.requests[1].ttft_s == pytest.approx(0.018 - 0.001 + 0.014 + 0.005)  # 4 new tokens, and a decode
    assert sorted(record.gaps.counts) == [19_000]


def test_requests_of_one_moment_share_a_step() -> None:
    record = run(Scripted([0, 0]), [request_of(1), request_of(2)], [1.0, 1.0])
    assert [request.ttft_s for request in record.requests] == pytest.approx([0.018, 0.018])


def test_workers_do_not_wait_for_each_other() -> None:
    record = run(Scripted([0, 1]), [request_of(1), request_of(2)], [1.0, 1.0])
    assert [request.ttft_s for request in record.requests] == pytest.approx([0.014, 0.014])


def test_each_worker_has_its_own_cache() -> None:
    requests = [request_of(1, 2, 3)] * 3
    record = run(Scripted([0, 1, 0]), requests, [0.0, 1.0, 2.0])
    assert [request.cached_tokens for request in record.requests] == [0, 0, 8]


def test_the_router_hears_of_the_cache() -> None:
    router = Scripted([0, 0])
    small = SchedulerConfig(block_size=BLOCK_SIZE, num_blocks=4, max_model_len=16, max_num_batched_tokens=256)
    run(router, [request_of(1, 2, 3), request_of(4, 5, 6)], [0.0, 1.0], small)
    kinds = [type(event) for batch in router.batches for event in batch.events]
    assert kinds == [BlockStored, BlockRemoved, BlockStored]


def test_a_router_that_holds_requests_back() -> None:
    router = Scripted([0, 0, 0], held_back=1)
    record = run(router, [request_of(1), request_of(2), request_of(3)], [0.0, 0.0, 1.0])
    assert [request.placed_s for request in record.requests] == pytest.approx([0, 0.014, 1])
    assert record.requests[1].ttft_s == pytest.approx(0.028), "waiting for the router counts"


def test_a_preempted_sequence_has_one_long_gap() -> None:
    tight = SchedulerConfig(block_size=BLOCK_SIZE, num_blocks=4, max_model_len=16, max_num_batched_tokens=256)
    record = run(Scripted([0, 0]), [request_of(1, output_tokens=8), request_of(2, output_tokens=8)], [0, 0], tight)
    assert record.preemptions
    assert all(request.finished and request.output_tokens == 8 for request in record.requests)
    assert record.gaps.counts.total() == 14, "every token but the first ones"
    assert max(record.gaps.counts) > 19_000, "longer than any step"
