"""A profile's points, and what lies between and beyond them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.planner.interpolated import InterpolatedModel
from dynamo.planner.profile import Profile

from .profiles import PROFILES, profile_of

AMOUNTS = st.floats(min_value=0, max_value=1e6)
SMALL = profile_of(
    {100: (0.1, 1000.0), 300: (0.2, 1500.0)},
    {(1000, 1): 0.010, (1000, 11): 0.020, (3000, 1): 0.030, (3000, 11): 0.060},
)


def test_between_points() -> None:
    model = InterpolatedModel(SMALL)
    assert model.prefill_s(200) == pytest.approx(0.15)
    assert model.prefill_tokens_per_s(200) == pytest.approx(1250)
    assert model.itl_s(1000, 6) == pytest.approx(0.015)
    assert model.itl_s(2000, 6) == pytest.approx(0.030)
    assert model.concurrency(1000, 0.015) == pytest.approx(6)


def test_beyond_points() -> None:
    model = InterpolatedModel(SMALL)
    assert model.prefill_s(1) == 0.1
    assert model.prefill_s(600) == pytest.approx(0.4)  # at the longest prompt's pace
    assert (model.prefill_tokens_per_s(1), model.prefill_tokens_per_s(9999)) == (1000, 1500)
    assert (model.itl_s(1, 1), model.itl_s(9999, 99)) == (0.010, 0.060)
    assert (model.concurrency(1000, 9.0), model.concurrency(1000, 0.001)) == (11, 1)


def test_noise_makes_nothing_faster_that_is_more() -> None:
    model = InterpolatedModel(profile_of({1: (0.2, 1), 2: (0.1, 1)}, {(1, 1): 0.2, (1, 2): 0.1, (2, 1): 0.1}))
    assert model.prefill_s(2) == pytest.approx(0.2)
    assert model.itl_s(1, 2) == model.itl_s(2, 1) == 0.2


def test_no_more_requests_than_the_cache_holds() -> None:
    model = InterpolatedModel(profile_of({1: (1, 1)}, {(1000, 1): 0.01, (1000, 64): 0.02}, max_kv_tokens=10_000))
    assert model.concurrency(1000, 1.0) == 10
    assert model.concurrency(50_000, 1.0) == 1


@given(profile=PROFILES, context=AMOUNTS, more_context=AMOUNTS, requests=AMOUNTS, more_requests=AMOUNTS)
def test_more_work_never_takes_less_time(
    profile: Profile, context: float, more_context: float, requests: float, more_requests: float
) -> None:
    model, slack = InterpolatedModel(profile), 1 + 1e-9
    itl_s = model.itl_s(context, requests)
    assert 0 < itl_s < math.inf
    assert itl_s <= model.itl_s(context + more_context, requests + more_requests) * slack
    assert 0 < model.prefill_s(context) <= model.prefill_s(context + more_context) * slack
    assert 0 < model.prefill_tokens_per_s(context) < math.inf


@given(profile=PROFILES, context=AMOUNTS, itl_s=st.floats(min_value=0, max_value=1e3))
def test_the_concurrency_keeps_the_time_and_no_greater_one_does(profile: Profile, context: float, itl_s: float) -> None:
    model = InterpolatedModel(profile)
    concurrency = model.concurrency(context, itl_s)
    assert 1 <= concurrency < math.inf
    assert concurrency == 1 or model.itl_s(context, concurrency) <= itl_s
    assert model.concurrency(context, 2 * itl_s) >= concurrency


@given(profile=PROFILES, share=st.floats(0, 1))
def test_each_point_is_hit_or_surpassed(profile: Profile, share: float) -> None:
    """Surpassed where a smaller one took longer."""
    model = InterpolatedModel(profile)
    point = profile.decode[int(share * (len(profile.decode) - 1))]
    assert model.itl_s(point.context_tokens, point.concurrency) >= point.itl_s * (1 - 1e-9)
    prompt = profile.prefill[int(share * (len(profile.prefill) - 1))]
    assert model.prefill_s(prompt.prompt_tokens) >= prompt.ttft_s * (1 - 1e-9)
