"""Waiting, against what is known exactly and against a simulation."""

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.planner.queueing import highest_utilisation, late_share, mean_wait_s


def test_one_worker_is_exact() -> None:
    """M/M/1: a request waits rho·S/(1-rho)."""
    assert mean_wait_s(0.75, 1, 2.0) == pytest.approx(6.0)
    assert late_share(0.75, 1, 2.0, 0.0) == pytest.approx(0.75)


@pytest.mark.parametrize(("workers", "utilisation"), [(1, 0.6), (4, 0.8), (16, 0.9)])
def test_shares_are_those_of_a_simulation(workers: int, utilisation: float) -> None:
    chance = random.Random(7)
    free_s, now_s, late, requests = [0.0] * workers, 0.0, 0, 40_000
    for _ in range(requests):
        now_s += chance.expovariate(workers * utilisation)
        begin_s = max(now_s, heapq.heappop(free_s))
        late += begin_s - now_s > 0.5
        heapq.heappush(free_s, begin_s + chance.expovariate(1.0))
    assert late_share(utilisation, workers, 1.0, 0.5) == pytest.approx(late / requests, abs=0.05)


@given(st.floats(1, 100), st.floats(0, 10), st.floats(0, 100), st.floats(0.01, 0.5))
def test_the_highest_utilisation_is_just_good_enough(
    workers: float, service_s: float, wait_s: float, late: float
) -> None:
    utilisation = highest_utilisation(workers, service_s, wait_s, late)
    assert 0 <= utilisation <= 1
    if utilisation < 1:
        assert late_share(utilisation, workers, service_s, wait_s) <= late
        assert late_share(min(1.0, utilisation + 1e-6), workers, service_s, wait_s) > late - 1e-3
