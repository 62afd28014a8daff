"""Differences of what only grows."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.planner.traffic_sums import as_traffic, difference, is_sane, summed
from dynamo.protocols.traffic import ModelTraffic

COUNTS = st.integers(0, 10**9)


@st.composite
def counted(draw: st.DrawFn) -> ModelTraffic:
    return ModelTraffic(
        model="m",
        arrived_requests=draw(COUNTS),
        finished_requests=draw(COUNTS),
        first_tokens=draw(COUNTS),
        ttft_s=float(draw(COUNTS)),
        prompts=draw(COUNTS),
        prompt_tokens=draw(COUNTS),
    )


@given(counted(), counted())
def test_the_difference_of_a_sum_is_what_was_added(before: ModelTraffic, added: ModelTraffic) -> None:
    assert msgspec.structs.replace(difference(before, summed([before, added])), model="m") == added


@given(counted(), counted())
def test_no_difference_is_negative(before: ModelTraffic, after: ModelTraffic) -> None:
    assert is_sane(difference(before, after))


def test_one_that_was_begun_anew_counts_from_zero() -> None:
    before, after = (ModelTraffic(model="m", arrived_requests=n, prompts=n) for n in (100, 3))
    assert difference(before, after) == after


def test_means() -> None:
    added = ModelTraffic(
        model="", prompts=4, prompt_tokens=40, cached_tokens=20, finished_requests=2, output_tokens=10,
        first_tokens=5, ttft_s=1.0, gaps=10, itl_s=0.5,
    )  # fmt: skip
    traffic = as_traffic(added, requests=7.5, duration_s=5.0)
    assert (traffic.requests, traffic.duration_s) == (7.5, 5.0)
    assert (traffic.prompt_tokens, traffic.cached_tokens, traffic.output_tokens) == (10, 5, 5)
    assert (traffic.ttft_s, traffic.itl_s) == (0.2, 0.05)


def test_means_over_nothing_are_not_known() -> None:
    traffic = as_traffic(summed([]), requests=0, duration_s=5.0)
    assert traffic.requests == 0
    assert {traffic.prompt_tokens, traffic.cached_tokens, traffic.output_tokens, traffic.ttft_s, traffic.itl_s} == {
        None
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_what_nobody_can_have_counted(value: float) -> None:
    assert not is_sane(ModelTraffic(model="m", ttft_s=value))
