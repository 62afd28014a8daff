"""Costs that are found again."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.planner.least_squares import LeastSquares

AMOUNTS = st.floats(min_value=0, max_value=1e9)


def test_finds_the_costs() -> None:
    rng, fit, costs = random.Random(1), LeastSquares(3), (0.01, 2e-5, 3e-8)
    for _ in range(200):
        amounts = [rng.uniform(1, 10), rng.uniform(0, 5000), rng.uniform(0, 1e6)]
        time_s = sum(amount * cost for amount, cost in zip(amounts, costs, strict=True))
        fit.add([amount / time_s for amount in amounts])
    assert fit.solve() == pytest.approx(costs, rel=0.01)


def test_forgets() -> None:
    fit = LeastSquares(1)
    for cost_s in (1.0, 3.0):
        for _ in range(3000):
            fit.add([1 / cost_s])
    assert fit.solve() == pytest.approx([3.0], rel=0.02)


def test_nothing_costs_less_than_nothing() -> None:
    fit = LeastSquares(2)
    for more in (1.0, 2.0, 3.0):
        fit.add([1.0, -0.1 * more])
    assert min(fit.solve()) >= 0


def test_what_was_never_seen_costs_nothing() -> None:
    fit = LeastSquares(2)
    assert fit.solve() == [0, 0]
    fit.add([2.0, 0.0])
    assert fit.solve() == pytest.approx([0.5, 0.0], rel=1e-3)


@given(st.lists(st.tuples(AMOUNTS, AMOUNTS, AMOUNTS), max_size=30))
def test_costs_are_numbers(samples: list[tuple[float, float, float]]) -> None:
    fit = LeastSquares(3)
    for sample in samples:
        fit.add(sample)
    assert all(0 <= cost < math.inf for cost in fit.solve())
