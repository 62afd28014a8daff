"""Prefill and decode workers in virtual time: by hand where that can be done, and nothing lost where it cannot."""

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.timing import TimingModel
from dynamo.engines.mocker.transfer_model import TransferModel
from dynamo.protocols.disagg import PrefillReason
from dynamo.router.config import KvRouterConfig
from dynamo.router.disagg import DisaggConfig
from dynamo.router.routing import WorkerLimits
from dynamo.simulator.disagg_cluster import DisaggCluster, Fleet
from dynamo.simulator.kv_core import KvCore
from dynamo.simulator.record import RequestRecord
from dynamo.simulator.trace import TraceRequest

BLOCK_SIZE = 4
TIMING = TimingModel(prefill_ms=(0, 1, 10), decode_ms=(0, 0, 5))  # 10 ms and 1 per new token; 5 ms for decoding
ENGINE = SchedulerConfig(block_size=BLOCK_SIZE, num_blocks=1000, max_model_len=400, max_num_batched_tokens=256)
INSTANT = TransferModel(bandwidth_gb_s=0)
SLOW = TransferModel(bandwidth_gb_s=1, bytes_per_token=1_000_000, latency_ms=2)  # 1 ms per token
UNCONDITIONAL = DisaggConfig()
BY_LENGTH = DisaggConfig(
    conditional_disagg=True, disagg_policy="length", max_local_prefill_length=8, max_local_prefill_ratio=1.0
)
BY_LOAD = DisaggConfig(conditional_disagg=True, disagg_policy="prefill-load", max_prefill_queue_tokens=10)


def request_of(*block_ids: int, output_tokens: int = 1) -> TraceRequest:
    return TraceRequest(
        arrival_s=0.0, prompt_tokens=len(block_ids) * BLOCK_SIZE, output_tokens=output_tokens, block_ids=block_ids
    )


def run(
    requests: list[TraceRequest],
    times_s: list[float],
    *,
    config: DisaggConfig = UNCONDITIONAL,
    prefill_workers: int = 1,
    decode_workers: int = 1,
    engine: SchedulerConfig = ENGINE,
    transfer: TransferModel = INSTANT,
    handoff_latency_s: float = 0.0,
) -> list[RequestRecord]:
    """What became of the requests; all must have ended, with nothing left behind."""
    limits = WorkerLimits(max_num_batched_tokens=engine.max_num_batched_tokens)
    prefill, decode = (
        Fleet(
            router=KvCore(KvRouterConfig(), BLOCK_SIZE, workers, limits, random.Random(0)),
            workers=workers,
            engine=engine,
        )
        for workers in (prefill_workers, decode_workers)
    )
    cluster = DisaggCluster(
        config,
        prefill,
        decode,
        TIMING,
        transfer,
        handoff_latency_s=handoff_latency_s,
        trace_block_size=BLOCK_SIZE,
    )
    records = cluster.run(requests, times_s).requests
    assert all(record.finished for record in records)
    assert [record.output_tokens for record in records] == [request.output_tokens for request in requests]
    assert cluster.held == prefill.router.requests == decode.router.requests == 0
    return records


def test_a_request_is_prefilled_in_one_place_and_decoded_in_another() -> None:
    (record,) = run([request_of(1, 2, output_tokens=6)], [2.0])
    assert record.ttft_s == pytest.approx(0.018 + 0.005), "8 new tokens, and the step that makes the first token anew"
    assert record.tpot_s == pytest.approx(0.005)
    assert record.latency_s == pytest.approx(0.023 + 5 * 0.005)
    assert (record.prefill, record.cached_tokens) == (PrefillReason.UNCONDITIONAL, 0)


def test_handoff_and_transfer_take_their_time() -> None:
    (record,) = run([request_of(1, 2)], [0.0], transfer=SLOW, handoff_latency_s=0.0005)
    assert record.ttft_s == pytest.approx(0.018 + 0.0005 + 0.002 + 0.007 + 0.005), "all but the last token is sent"


def test_a_prefill_worker_sends_one_prompt_after_the_other() -> None:
    records = run([request_of(1, 2), request_of(3, 4)], [0.0, 0.0], decode_workers=2, transfer=SLOW)
    both_prefilled_s = 0.010 + 0.016
    ends_s = sorted(record.last_token_s for record in records)
    assert ends_s == pytest.approx([both_prefilled_s + 0.002 + sent_s + 0.005 for sent_s in (0.007, 0.014)])


def test_others_decode_undisturbed_while_a_prompt_is_prefilled() -> None:
    answer, long_prompt = request_of(1, output_tokens=50), request_of(*range(10, 60))
    records = run([answer, long_prompt], [0.0, 0.1])
    assert records[0].tpot_s == pytest.approx(0.005)


def test_both_kinds_of_worker_find_what_they_have() -> None:
    prompt = request_of(1, 2, 3)
    records = run([prompt, prompt], [0.0, 1.0], transfer=SLOW)
    assert [record.cached_tokens for record in records] == [0, 8], "as the prefill worker says"
    assert records[0].ttft_s == pytest.approx(0.022 + 0.002 + 0.011 + 0.005)
    assert records[1].ttft_s == pytest.approx(0.014 + 0.002 + 0.003 + 0.005), "3 of the last 4 tokens are sent"


def test_short_prompts_are_prefilled_where_they_are_decoded() -> None:
    records = run([request_of(1), request_of(2, 3)], [0.0, 1.0], config=BY_LENGTH)
    assert [record.prefill for record in records] == [PrefillReason.SHORT, PrefillReason.CONDITIONS_NOT_MET]
    assert [record.ttft_s for record in records] == pytest.approx([0.014, 0.023])


def test_what_the_decode_worker_has_cached_makes_a_prompt_short() -> None:
    records = run([request_of(1, 2, 3), request_of(1, 2, 3, 4)], [0.0, 1.0], config=BY_LENGTH)
    assert [record.prefill for record in records] == [PrefillReason.CONDITIONS_NOT_MET, PrefillReason.SHORT]
    assert records[1].cached_tokens == 12


def test_a_busy_prefill_worker_is_passed_by() -> None:
    requests = [request_of(1, 2, 3), request_of(4, 5, 6), request_of(7, 8, 9)]
    records = run(requests, [0.0, 0.001, 1.0], config=BY_LOAD)
    busy = PrefillReason.PREFILL_BUSY
    assert [record.prefill for record in records] == [
        PrefillReason.CONDITIONS_NOT_MET,
        busy,
        PrefillReason.CONDITIONS_NOT_MET,
    ]


ARRIVALS = st.lists(
    st.tuples(
        st.floats(0, 0.3),
        st.integers(1, 4),  # which prefix
        st.integers(0, 6),  # how many blocks beside
        st.integers(1, 30),  # output tokens
    ),
    min_size=1,
    max_size=30,
)


@settings(deadline=None, max_examples=60)
@given(
    ARRIVALS,
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([UNCONDITIONAL, BY_LENGTH, BY_LOAD]),
    st.sampled_from([INSTANT, SLOW]),
)
def test_every_request_gets_its_tokens_even_where_blocks_are_scarce(
    arrivals: list[tuple[float, int, int, int]],
    prefill_workers: int,
    decode_workers: int,
    config: DisaggConfig,
    transfer: TransferModel,
) -> None:
    """run() looks at it."""
    arrivals.sort()
    requests = [
        request_of(prefix, *range(100 * number, 100 * number + own), output_tokens=output_tokens)
        for number, (_, prefix, own, output_tokens) in enumerate(arrivals, 1)
    ]
    run(
        requests,
        [arrival[0] for arrival in arrivals],
        config=config,
        prefill_workers=prefill_workers,
        decode_workers=decode_workers,
        transfer=transfer,
        engine=dataclasses.replace(ENGINE, num_blocks=16, max_model_len=64, max_num_seqs=4, max_num_batched_tokens=16),
        handoff_latency_s=0.0005,
    )
