"""Turns come in the order in which they were asked for, and are passed on by who does not want them any more."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from dynamo.errors import RequestCancelledError
from dynamo.transfer.nixl_way import Way

WAIT_S = 10


def nothing() -> None:
    pass


def test_in_the_order_of_coming() -> None:
    way, taken = Way(), list[int]()

    def take(number: int) -> None:
        with way.turn(nothing):
            taken.append(number)

    with ThreadPoolExecutor(5) as pool:
        waiting: list[Future[None]] = []
        with way.turn(nothing):
            for number in range(5):
                waiting.append(pool.submit(take, number))
                queued(way, 2 + number)
        for each in waiting:
            each.result(WAIT_S)
    assert taken == list(range(5))


def test_who_gives_up_lets_the_next_one_in() -> None:
    way, wanted = Way(), threading.Event()
    wanted.set()

    def check() -> None:
        if not wanted.is_set():
            raise RequestCancelledError("not wanted")

    def take() -> None:
        with way.turn(check):
            pytest.fail("it was not wanted")

    with ThreadPoolExecutor(1) as pool, way.turn(nothing):
        waiting = pool.submit(take)
        queued(way, 2)
        wanted.clear()
        with pytest.raises(RequestCancelledError):
            waiting.result(WAIT_S)
    with way.turn_if_free() as free:
        assert free


def test_if_free() -> None:
    way = Way()
    with way.turn(nothing), way.turn_if_free() as free:
        assert not free
    with way.turn_if_free() as first, way.turn_if_free() as second:
        assert (first, second) == (True, False)


def queued(way: Way, count: int) -> None:
    """Returns when so many have the turn or wait for it."""
    with way._condition:
        assert way._condition.wait_for(lambda: len(way._queue) == count, WAIT_S)
