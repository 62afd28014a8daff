"""Choosing a worker."""

import random
from collections import Counter

import pytest

from dynamo.router.selection import LeastLoaded, Random, RoundRobin, RouterMode, make_selector

WORKERS = [3, 5, 8]


def picks(mode: RouterMode, times: int, in_flight: dict[int, int] | None = None, seed: int = 0) -> list[int]:
    selector = make_selector(mode, random.Random(seed))
    return [selector.pick(WORKERS, in_flight or {}) for _ in range(times)]


def test_round_robin_takes_turns() -> None:
    assert picks(RouterMode.ROUND_ROBIN, 7) == [3, 5, 8, 3, 5, 8, 3]


def test_round_robin_goes_on_when_workers_come_and_go() -> None:
    selector = RoundRobin()
    chosen = [selector.pick(candidates, {}) for candidates in (WORKERS, [3, 5], [5], WORKERS, [3, 5, 8, 9])]
    assert set(chosen) <= {3, 5, 8, 9}
    assert Counter(selector.pick([3, 5], {}) for _ in range(10)) == {3: 5, 5: 5}


def test_random_is_fair_and_repeatable() -> None:
    chosen = Counter(picks(RouterMode.RANDOM, 3000))
    assert set(chosen) == set(WORKERS)
    assert min(chosen.values()) > 900
    assert picks(RouterMode.RANDOM, 50) == picks(RouterMode.RANDOM, 50) != picks(RouterMode.RANDOM, 50, seed=1)


def test_least_loaded() -> None:
    assert set(picks(RouterMode.LEAST_LOADED, 50, {3: 2, 5: 1, 8: 2})) == {5}
    assert set(picks(RouterMode.LEAST_LOADED, 50, {3: 1, 5: 4})) == {8}  # of which nothing is known: idle


def test_least_loaded_spreads_over_equals() -> None:
    chosen = Counter(picks(RouterMode.LEAST_LOADED, 900, {3: 1, 5: 1, 8: 1}))
    assert min(chosen.values()) > 200


def test_least_loaded_ignores_those_that_are_no_candidates() -> None:
    assert LeastLoaded(random.Random(0)).pick([5], {3: 0, 5: 9}) == 5


@pytest.mark.parametrize("mode", RouterMode)
def test_every_mode_has_a_selector(mode: RouterMode) -> None:
    assert picks(mode, 1)[0] in WORKERS
    assert type(make_selector(RouterMode.RANDOM, random.Random(0))) is Random
