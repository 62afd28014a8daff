"""Fewer only after fewer were enough for a while."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.planner.cool_down import CoolDown


def test_fewer_after_the_delay() -> None:
    cool_down = CoolDown(30)
    assert [cool_down.floor(wanted, 5, now_s) for now_s, wanted in [(0, 5), (10, 2), (39, 2), (40, 2)]] == [5, 5, 5, 2]


def test_the_past_of_a_new_planner_is_what_is_there() -> None:
    cool_down = CoolDown(30)
    assert [cool_down.floor(2, 5, now_s) for now_s in (0, 29, 30)] == [5, 5, 2]


def test_a_peak_in_between_begins_the_delay_anew() -> None:
    cool_down = CoolDown(30)
    steps = [(0, 2), (20, 3), (25, 2), (31, 2), (54, 2), (55, 2)]
    assert [cool_down.floor(wanted, 2, now_s) for now_s, wanted in steps] == [2, 3, 3, 3, 3, 2]


def test_a_number_counts_until_the_next_is_known() -> None:
    cool_down = CoolDown(30)
    assert [cool_down.floor(wanted, 5, now_s) for now_s, wanted in [(0, 5), (100, 2), (130, 2)]] == [5, 5, 2]


def test_what_somebody_else_chose_stays_for_the_delay() -> None:
    cool_down = CoolDown(30)
    cool_down.floor(2, 2, 0)
    cool_down.restart(7, 100)
    assert [cool_down.floor(2, 7, now_s) for now_s in (100, 129, 130)] == [7, 7, 2]


def test_a_clock_that_was_set_back_begins_anew() -> None:
    cool_down = CoolDown(30)
    cool_down.floor(5, 5, 1000)
    assert [cool_down.floor(2, 5, now_s) for now_s in (0, 30)] == [5, 2]


@pytest.mark.parametrize("delay_s", [0.0, 7.0, 30.0])
@given(st.lists(st.tuples(st.floats(0.1, 20), st.integers(0, 9)), min_size=1, max_size=40))
def test_it_is_the_highest_of_the_window(delay_s: float, steps: list[tuple[float, int]]) -> None:
    cool_down, now_s = CoolDown(delay_s), 0.0
    history: list[tuple[float, int]] = [(0.0, 0)]  # since when
    assert cool_down.floor(0, 0, 0.0) == 0
    for passed_s, wanted in steps:
        now_s += passed_s
        history.append((now_s, wanted))
        ends = [since_s for since_s, _ in history[1:]] + [float("inf")]
        within = [number for (_, number), end_s in zip(history, ends, strict=True) if end_s + delay_s > now_s]
        assert cool_down.floor(wanted, 0, now_s) == max(within)
