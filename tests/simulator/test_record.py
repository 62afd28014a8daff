import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.simulator.record import RequestRecord, TokenGaps
from dynamo.simulator.report import percentile

gaps_us = st.lists(st.integers(0, 50), min_size=1, max_size=60)


@given(gaps_us, st.integers(1, 100))
def test_gaps_are_counted_as_if_listed(listed: list[int], percent: int) -> None:
    gaps = TokenGaps()
    for gap_us in listed:
        gaps.add(gap_us / 1e6)
    assert gaps.mean_s() == pytest.approx(sum(listed) / len(listed) / 1e6)
    assert gaps.percentile_s(percent) == percentile(sorted(listed), percent) / 1e6


def test_several_at_once() -> None:
    gaps = TokenGaps()
    gaps.add(0.001, 99)
    gaps.add(0.2)
    assert gaps.percentile_s(99) == 0.001
    assert gaps.percentile_s(99.5) == 0.2


def test_no_gaps() -> None:
    assert TokenGaps().mean_s() == TokenGaps().percentile_s(99) == 0


def test_the_time_per_output_token_of_a_request() -> None:
    record = RequestRecord(request_id=0, arrival_s=1.0, prompt_tokens=1, first_token_s=2.0, last_token_s=2.3)
    record.output_tokens = 4
    assert record.tpot_s == pytest.approx(0.1)
    one = RequestRecord(request_id=0, arrival_s=1.0, prompt_tokens=1, output_tokens=1)
    assert one.tpot_s == 0
