import pytest

from dynamo.simulator.record import RequestRecord, RunRecord
from dynamo.simulator.report import percentile, summarize, table


def record_of(request_id: int, *, worker: int = 0, cached: int = 0, ttft_s: float = 1.0) -> RequestRecord:
    return RequestRecord(
        request_id=request_id,
        arrival_s=float(request_id),
        prompt_tokens=100,
        worker=worker,
        placed_s=float(request_id),
        cached_tokens=cached,
        output_tokens=2,
        first_token_s=request_id + ttft_s,
        last_token_s=request_id + ttft_s + 0.5,
        finished=True,
    )


def test_figures() -> None:
    records = [record_of(0), record_of(1, cached=50, ttft_s=3), record_of(2, worker=1, cached=100, ttft_s=2)]
    summary = summarize(RunRecord(workers=2, requests=records), "kv")
    assert summary.requests == 3
    assert summary.rate_per_s == 1.5
    assert summary.completed_per_s == pytest.approx(3 / 4.5)
    assert summary.hit_ratio == 0.5
    assert (summary.ttft_mean_s, summary.ttft_p50_s, summary.ttft_p99_s) == (2, 2, 3)
    assert (summary.latency_mean_s, summary.latency_p99_s) == (2.5, 3.5)
    assert summary.requests_spread == pytest.approx(4 / 3)
    assert summary.prefill_spread == 2  # one has prefilled everything


def test_a_lost_request_makes_the_run_void() -> None:
    lost = record_of(1)
    lost.finished = False
    with pytest.raises(ValueError, match="1 requests never ended, the first of them 1"):
        summarize(RunRecord(workers=2, requests=[record_of(0), lost]), "kv")


def test_percentiles_are_values_that_occurred() -> None:
    values = [1.0, 2.0, 3.0, 4.0]
    assert [percentile(values, p) for p in (0, 25, 26, 50, 75, 99, 100)] == [1, 1, 2, 2, 3, 4, 4]


def test_the_table_is_markdown() -> None:
    summary = summarize(RunRecord(workers=2, requests=[record_of(0)]), "kv")
    head, rule, row = table([summary]).splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")
    assert len(head) == len(rule) == len(row)
    assert set(rule) == set("|-:")
    assert row.startswith("| kv ")
