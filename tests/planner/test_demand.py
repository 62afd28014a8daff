"""Traffic summed up."""

import pytest

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
    window.add(5, _traffic(30, prompt=100, cached=40))
    window.add(10, _traffic(10, prompt=200))
    demand = window.demand()
    assert demand.requests_per_s == pytest.approx(4)
    assert demand.prompt_tokens == pytest.approx(125)
    assert demand.prefill_tokens == pytest.approx(95)
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


def test_a_burst_counts_at_once() -> None:
    window = TrafficWindow()
    for tick in range(6):
        window.add(5.0 * tick, _traffic(100))
    window.add(30, _traffic(400))
    demand = window.demand()
    assert demand.at_least_per_s == pytest.approx((400 - 40) / 5)
    assert demand.at_most_per_s >= demand.at_least_per_s


def test_an_interval_is_taken_once() -> None:
    interval = IntervalSum()
    interval.add(_traffic(10))
    interval.add(_traffic(30, prompt=100))
    demand = interval.take()
    assert demand is not None
    assert (demand.requests_per_s, demand.prefill_tokens) == (4, 100)
    assert interval.take() is None
