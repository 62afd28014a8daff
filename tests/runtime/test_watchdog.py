"""When something has stalled, and when it is well again: one look is one second here."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from dynamo.errors import ConfigError, OverloadedError
from dynamo.runtime.watchdog import Vitals, Watchdog
from dynamo.testing import eventually, within

CANARY_S, STALL_S = 10, 60


class Patient:
    """Does as the test says."""

    def __init__(self, parts: int = 1) -> None:
        self.steps = [0] * parts
        self.busy = [False] * parts
        self.canaries: list[int] = []
        self.answers = asyncio.Event()
        self.error: Exception | None = None
        self.told: list[str] = []
        self.refusals = 0  # of what it is told

    def vitals(self) -> Sequence[Vitals]:
        return [Vitals(steps=steps, busy=busy) for steps, busy in zip(self.steps, self.busy, strict=True)]

    async def canary(self, part: int) -> None:
        self.canaries.append(part)
        if self.error is not None:
            raise self.error
        await self.answers.wait()

    async def on_stall(self) -> None:
        self._tell("stall")

    async def on_recovery(self) -> None:
        self._tell("recovery")

    def _tell(self, what: str) -> None:
        if self.refusals:
            self.refusals -= 1
            raise ConfigError("discovery is away")
        self.told.append(what)


def watched(patient: Patient, canary_s: float = CANARY_S, stall_s: float = STALL_S) -> Watchdog:
    return Watchdog(patient, patient.on_stall, patient.on_recovery, canary_interval_s=canary_s, stall_s=stall_s)


async def pass_s(watchdog: Watchdog, seconds: int) -> None:
    assert watchdog.tick_s == 1
    for _ in range(seconds):
        watchdog.look()
        for _ in range(3):
            await asyncio.sleep(0)  # a canary that is due begins, and may end


async def test_busy_without_a_step() -> None:
    patient = Patient()
    patient.busy = [True]
    watchdog = watched(patient)
    await pass_s(watchdog, STALL_S - 1)
    assert not watchdog.stalled
    await pass_s(watchdog, 1)
    assert watchdog.stalled
    patient.steps = [1]
    watchdog.look()
    assert not watchdog.stalled


async def test_busy_with_steps_is_left_in_peace() -> None:
    patient = Patient()
    patient.busy = [True]
    watchdog = watched(patient)
    for _ in range(3 * STALL_S // 5):
        patient.steps[0] += 1
        await pass_s(watchdog, 5)
    assert not watchdog.stalled
    assert not patient.canaries


async def test_idle_answers_canaries() -> None:
    patient = Patient()
    patient.answers.set()
    watchdog = watched(patient)
    await pass_s(watchdog, 3 * STALL_S)
    assert not watchdog.stalled
    assert len(patient.canaries) == pytest.approx(3 * STALL_S / CANARY_S, abs=2)


async def test_idle_does_not_answer_and_then_does() -> None:
    patient = Patient()
    watchdog = watched(patient)
    await pass_s(watchdog, CANARY_S + STALL_S - 1)
    assert not watchdog.stalled
    await pass_s(watchdog, 3)
    assert watchdog.stalled
    await pass_s(watchdog, 10 * STALL_S)
    assert patient.canaries == [0]  # they do not pile up
    patient.answers.set()
    await pass_s(watchdog, 1)
    assert not watchdog.stalled


async def test_canary_that_makes_a_step_has_done_its_work() -> None:
    """Though it is in a queue behind others."""
    patient = Patient()
    patient.busy = [True]
    watchdog = watched(patient)
    for _ in range(STALL_S):
        await pass_s(watchdog, CANARY_S + 2)
        patient.steps[0] += 1
    assert not watchdog.stalled


async def test_failing_canaries_are_no_answers() -> None:
    patient = Patient()
    patient.error = OverloadedError("full")
    watchdog = watched(patient)
    await pass_s(watchdog, CANARY_S + STALL_S + 2)
    assert watchdog.stalled
    assert len(patient.canaries) == pytest.approx(STALL_S / CANARY_S, abs=2)
    patient.error = None
    patient.answers.set()
    await pass_s(watchdog, CANARY_S + 1)
    assert not watchdog.stalled


async def test_without_canaries_only_the_busy_are_judged() -> None:
    patient = Patient()
    watchdog = watched(patient, canary_s=0)
    await pass_s(watchdog, 2 * STALL_S)
    assert not watchdog.stalled
    patient.busy = [True]
    await pass_s(watchdog, STALL_S)
    assert watchdog.stalled
    patient.busy = [False]  # its work was taken away, so there is nothing against it
    watchdog.look()
    assert not watchdog.stalled
    assert not patient.canaries


async def test_one_part_of_several() -> None:
    patient = Patient(parts=3)
    patient.busy = [True] * 3
    watchdog = watched(patient)
    for _ in range(STALL_S + 1):
        patient.steps[0] += 1
        patient.steps[2] += 1
        await pass_s(watchdog, 1)
    assert watchdog.stalled
    assert set(patient.canaries) == {1}


@pytest.fixture
async def running() -> AsyncIterator[Patient]:
    patient = Patient()
    task = asyncio.create_task(watched(patient, canary_s=0.02, stall_s=0.04).run())
    yield patient
    task.cancel()
    await within(asyncio.wait([task]))
    assert asyncio.all_tasks() == {asyncio.current_task()}  # the canary too


async def test_tells_once_of_each_change(running: Patient) -> None:
    running.refusals = 2  # it tries again
    await eventually(lambda: running.told == ["stall"])
    running.answers.set()
    await eventually(lambda: running.told == ["stall", "recovery"])
    running.answers.clear()
    await eventually(lambda: running.told == ["stall", "recovery", "stall"])
