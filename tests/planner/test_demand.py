"""Traffic summed up."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.planner.demand import IntervalSum, TrafficWindow
from dynamo.planner.observation import Traffic


def _traffic(requests: float, prompt: float | None = None, cached: float | None = None) -> Traffic:
    return Traffic(
        duration_s=5.0,
        requests=requests,
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=None,
        ttft_s=None,
        itl_s=None,
    )


def test_means_count_requests_and_leave_out_what_is_cached() -> None:
    window = TrafficWindow()
    window.add(5, _traffic(24, prompt=100, cached=40))
    window.add(10, _traffic(16, prompt=200))
    demand = window.demand()
    assert demand.requests_per_s == pytest.approx(4)
    assert demand.prompt_tokens == pytest.approx(140)
    assert demand.prefill_tokens == pytest.approx(116)
    assert demand.context_tokens is None


def test_old_traffic_is_forgotten_but_not_what_requests_are_like() -> None:
    window = TrafficWindow(span_s=10)
    window.add(5, _traffic(30, prompt=100))
    for now_s in (10, 15, 20):
        window.add(now_s, _traffic(0))
    demand = window.demand()
    assert (demand.requests_per_s, demand.at_least_per_s, demand.at_most_per_s) == (0, 0, 0)
    assert demand.prompt_tokens == 100


def test_chance_is_not_more_nor_less() -> None:
    window = TrafficWindow()
    for tick in range(6):
        window.add(5.0 * tick, _traffic(100))
    demand = window.demand()
    assert demand.at_least_per_s == pytest.approx(20 - 2 * 600**0.5 / 30)
    assert demand.at_most_per_s == pytest.approx(20 + 2 * 600**0.5 / 30)


def test_a_burst_counts_at_once_and_what_was_before_no_more() -> None:
    window = TrafficWindow()
    for tick in range(6):
        window.add(5.0 * tick, _traffic(100, prompt=10))
    window.add(30, _traffic(400, prompt=20))
    demand = window.demand()
    assert demand.requests_per_s == 80
    assert demand.at_least_per_s == pytest.approx((400 - 40) / 5)
    assert demand.at_most_per_s == pytest.approx((400 + 40) / 5)
    assert 10 < (demand.prompt_tokens or 0) < 20
    window.add(35, _traffic(420))
    assert window.demand().requests_per_s == 82


def test_so_does_the_end_of_it() -> None:
    window = TrafficWindow()
    for tick in range(6):
        window.add(5.0 * tick, _traffic(400))
    window.add(30, _traffic(100))
    assert window.demand().requests_per_s == 20


def test_a_clock_that_is_set_back_leaves_the_newest() -> None:
    window = TrafficWindow()
    window.add(1000, _traffic(10))
    window.add(1005, _traffic(400))
    window.add(3, _traffic(20))
    assert window.demand().requests_per_s == 4


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0.01, 100)), min_size=1, max_size=50))
def test_rates_are_sensible_whatever_comes(observations: list[tuple[float, float]]) -> None:
    window, now_s = TrafficWindow(), 0.0
    for requests, duration_s in observations:
        now_s += duration_s
        window.add(now_s, replace(_traffic(requests), duration_s=duration_s))
        demand = window.demand()
        assert 0 <= demand.at_least_per_s <= demand.requests_per_s <= demand.at_most_per_s < 1e10


@given(st.integers(0, 2**32))
def test_chance_alone_seldom_changes_a_rate(seed: int) -> None:
    rng, window, changes = random.Random(seed), TrafficWindow(), 0
    for tick in range(200):
        count = sum(rng.random() < 0.1 for _ in range(500))
        window.add(5.0 * tick, _traffic(count))
        changes += window.demand().requests_per_s == count / 5
    assert changes <= 20


def test_an_interval_is_taken_once() -> None:
    interval = IntervalSum()
    interval.add(_traffic(10))
    interval.add(_traffic(30, prompt=100))
    demand = interval.take()
    assert demand is not None
    assert (demand.requests_per_s, demand.prefill_tokens) == (4, 100)
    assert interval.take() is None
