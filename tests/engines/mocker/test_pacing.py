from collections.abc import Callable

import pytest

from dynamo.engines.mocker.pacing import LAG_S_MAX, TIMER_S, Pacer


def just_after(expected_s: float, now_s: float) -> bool:
    """Not early, and late by no more than what a timer is inaccurate."""
    return -1e-9 <= now_s - expected_s <= TIMER_S + 1e-9


class FakeTime:
    """A clock that only sleeping, or working, moves."""

    def __init__(self, timer: Callable[[float], float] = lambda delay_s: delay_s) -> None:
        self.now = 100.0
        self.sleeps: list[float] = []
        self._timer = timer

    def now_s(self) -> float:
        return self.now

    async def sleep(self, delay_s: float) -> None:
        self.sleeps.append(delay_s)
        if delay_s:
            self.now += self._timer(delay_s)


async def test_a_step_ends_when_its_duration_is_over() -> None:
    time = FakeTime()
    pacer = Pacer(time.now_s, time.sleep)

    await pacer.step(0.25)
    assert just_after(100.25, time.now)


async def test_coarse_timers_add_up_to_nothing() -> None:
    time = FakeTime()
    pacer = Pacer(time.now_s, time.sleep)
    for number in range(1, 1001):
        await pacer.step(0.00574)
        assert just_after(100 + number * 0.00574, time.now)


async def test_only_whole_ticks_are_slept() -> None:
    time = FakeTime()
    await Pacer(time.now_s, time.sleep).step(0.0057)

    assert time.sleeps == [pytest.approx(0.006)]


async def test_a_timer_that_goes_off_early_is_set_again() -> None:
    time = FakeTime(timer=lambda delay_s: delay_s - 0.0004)
    await Pacer(time.now_s, time.sleep).step(0.006)

    assert just_after(100.006, time.now)


async def test_every_step_gives_the_event_loop_a_turn() -> None:
    time = FakeTime()
    pacer = Pacer(time.now_s, time.sleep)
    for _ in range(3):
        await pacer.step(0.0)

    assert time.sleeps == [0, 0, 0]
    assert time.now == 100


async def test_steps_shorter_than_a_tick_keep_pace_on_the_whole() -> None:
    time = FakeTime()
    pacer = Pacer(time.now_s, time.sleep)
    for _ in range(1000):
        await pacer.step(0.00006)

    assert just_after(100.06, time.now)
    assert sum(1 for delay_s in time.sleeps if delay_s == 0) > 900


async def test_a_small_lag_is_made_good() -> None:
    time = FakeTime()
    pacer = Pacer(time.now_s, time.sleep)
    time.now += 0.009  # the event loop was busy
    await pacer.step(0.006)
    await pacer.step(0.006)

    assert just_after(100.012, time.now)


async def test_a_lag_of_more_than_a_step_is_not_made_good() -> None:
    time = FakeTime()
    pacer = Pacer(time.now_s, time.sleep)
    time.now += 1.0
    await pacer.step(0.006)
    assert time.now == 101.0
    await pacer.step(0.006)

    assert just_after(101.006, time.now)


async def test_a_short_step_may_lag_by_what_timers_are_inaccurate() -> None:
    time = FakeTime()
    pacer = Pacer(time.now_s, time.sleep)
    time.now += LAG_S_MAX - 0.001
    await pacer.step(0.0001)
    await pacer.step(LAG_S_MAX)

    assert just_after(100.0001 + LAG_S_MAX, time.now)


async def test_after_a_restart_the_past_does_not_count() -> None:
    time = FakeTime()
    pacer = Pacer(time.now_s, time.sleep)
    time.now += 0.004
    pacer.restart()
    await pacer.step(0.006)

    assert just_after(100.010, time.now)
