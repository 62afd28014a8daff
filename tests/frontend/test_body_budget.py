"""Memory for bodies."""

import pytest

from dynamo.errors import OverloadedError
from dynamo.frontend.body_budget import BodyBudget


def test_what_ended_gives_its_part_back() -> None:
    budget = BodyBudget(10)
    with budget.hold() as first:
        first.grow(4)
        first.grow(3)
        with budget.hold() as second:
            second.grow(3)
            assert budget.left_bytes == 0
            with pytest.raises(OverloadedError):
                second.grow(1)
        assert budget.left_bytes == 3
    assert budget.left_bytes == 10


def test_failures_give_it_back_too() -> None:
    budget = BodyBudget(10)

    def fail() -> None:
        with budget.hold() as held:
            held.grow(10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert budget.left_bytes == 10
