"""How many may wait, learnt from queues that the test makes up."""

import math
import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.frontend.first_token_forecast import FirstTokenForecast

LIMIT_S = 2.0
AIM_S = 1.3


def test_at_first_there_is_no_bound() -> None:
    forecast = FirstTokenForecast(LIMIT_S)
    assert math.isinf(forecast.room)
    assert forecast.wait_s(1000) == 0
    for ahead in range(1000):
        forecast.observe(ahead=ahead, wait_s=0.5)  # a batch of a thousand, all answered at once
    assert math.isinf(forecast.room)


def test_the_first_long_wait_says_how_many() -> None:
    forecast = FirstTokenForecast(LIMIT_S)
    forecast.observe(ahead=19, wait_s=1.0)
    assert forecast.room == pytest.approx(26)  # 20 a second, for 1.3 s
    assert forecast.wait_s(26) == pytest.approx(AIM_S)
    assert forecast.wait_s(52) == pytest.approx(2 * AIM_S)


def test_short_waits_say_something_where_the_room_was_used() -> None:
    forecast = FirstTokenForecast(LIMIT_S)
    forecast.observe(ahead=19, wait_s=1.0)
    forecast.observe(ahead=11, wait_s=0.0)
    assert forecast.room == pytest.approx(26)
    forecast.observe(ahead=12, wait_s=0.0)
    assert 26 < forecast.room < 27


def test_an_engine_that_was_slow_only_at_its_start_is_not_held_back_for_long() -> None:
    forecast = FirstTokenForecast(LIMIT_S)
    forecast.observe(ahead=0, wait_s=60.0)
    assert forecast.room < 1
    answers = 0
    while forecast.room < 20:
        answers += 1
        forecast.observe(ahead=max(0, int(forecast.room) - 1), wait_s=0.05)
    assert answers < 200


def test_quick_ones_among_those_that_wait_do_not_undo_it() -> None:
    """Half of the answers come at once, as from an idle worker; the others wait, twenty a second."""
    forecast = FirstTokenForecast(LIMIT_S)
    for _ in range(2000):
        ahead = int(min(forecast.room, 1e6)) - 1
        forecast.observe(ahead=ahead, wait_s=(ahead + 1) / 20)
        forecast.observe(ahead=ahead, wait_s=0.001)
    assert forecast.room < 2 * 26


@given(rate=st.floats(1, 500), change=st.floats(0.1, 10))
def test_it_follows_the_fleet(rate: float, change: float) -> None:
    """One after the other, `rate` per second: as many may wait as are answered in 1.3 s; so after the rate changes."""
    forecast = FirstTokenForecast(LIMIT_S)
    for rate_now in (rate, rate * change):
        for _ in range(300):
            ahead = max(0, int(min(forecast.room, 1000 * rate_now)) - 1)  # always full
            forecast.observe(ahead=ahead, wait_s=(ahead + 1) / rate_now)
        assert forecast.room == pytest.approx(max(1, AIM_S * rate_now), rel=0.15, abs=1)


@pytest.mark.parametrize("load", [0.5, 0.9, 1.5, 3.0, 10.0])
def test_a_queue_that_it_guards(load: float) -> None:
    """Poisson arrivals at a server with exponential service: waits stay under the limit, and it is never idle."""
    rng = random.Random(int(10 * load))
    rate_per_s, now_s, free_s = 50.0, 0.0, 0.0
    forecast = FirstTokenForecast(LIMIT_S)
    waiting: deque[tuple[float, float, int]] = deque()  # when it will be answered, arrival, ahead of it
    waits: list[float] = []
    while now_s < 120:
        now_s += rng.expovariate(load * rate_per_s)
        while waiting and waiting[0][0] <= now_s:
            done_s, arrived_s, ahead = waiting.popleft()
            forecast.observe(ahead=ahead, wait_s=done_s - arrived_s)
            if now_s > 20:  # it has had the time to learn
                waits.append(done_s - arrived_s)
        if len(waiting) < max(1, forecast.room):
            free_s = max(free_s, now_s) + rng.expovariate(rate_per_s)
            waiting.append((free_s, now_s, len(waiting)))
    waits.sort()
    assert waits[int(0.99 * len(waits))] < LIMIT_S
    assert len(waits) > 0.93 * 100 * rate_per_s * min(1, load)
