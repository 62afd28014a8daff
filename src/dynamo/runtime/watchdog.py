"""Whether what stands behind an endpoint still makes progress: a process may live and answer, and its engine hang."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dynamo.errors import DynamoError
from dynamo.runtime.background import in_background

logger = logging.getLogger(__name__)

_TICK_S_MAX = 1.0
_TICKS_MIN = 4  # in each of the two times that are waited
_CLEANUP_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What can be seen of one part, such as a data-parallel rank."""

    steps: int  # grows with its progress
    busy: bool  # it has work, so that they must grow


class Subject(Protocol):
    """What is watched."""

    def vitals(self) -> Sequence[Vitals]:
        """Of each of its parts, which stay the same ones."""
        ...

    async def canary(self, part: int) -> None:
        """Gives the part a little work; returns when that is done, and raises where it is not."""
        ...


class Watchdog:
    """Tells when a subject stalls, and when it is well again.

    A part that is busy, or was given a canary, and makes no step for `stall_s` has stalled; the next step, or the
    answer to a canary, ends that. A part without a step for `canary_interval_s` is given a canary (0: never), in its
    stall too. Times are counted in turns of the event loop: none passes while this process itself is held up.
    """

    def __init__(
        self,
        subject: Subject,
        on_stall: Callable[[], Awaitable[None]],
        on_recovery: Callable[[], Awaitable[None]],
        *,
        canary_interval_s: float,
        stall_s: float,
    ) -> None:
        """Both functions may raise DynamoErrors, and are called again then."""
        self._subject = subject
        self._on_stall = on_stall
        self._on_recovery = on_recovery
        self._canary_interval_s = canary_interval_s
        self._stall_s = stall_s
        self.tick_s = min(_TICK_S_MAX, stall_s / _TICKS_MIN, (canary_interval_s or stall_s) / _TICKS_MIN)
        self._parts: list[_Part] = []
        self._told_stalled = False

    @property
    def stalled(self) -> bool:
        return any(part.due_s >= self._stall_s for part in self._parts)

    async def run(self) -> None:
        """Watches until it is cancelled."""
        try:
            while True:
                await asyncio.sleep(self.tick_s)
                self.look()
                await self._tell()
        finally:
            canaries = [part.canary for part in self._parts if part.canary is not None]
            for canary in canaries:
                canary.cancel()
            if canaries:
                await asyncio.wait(canaries, timeout=_CLEANUP_S)  # a hung engine may not take it back

    def look(self) -> None:
        """Once in each tick."""
        for number, vitals in enumerate(self._subject.vitals()):
            if number == len(self._parts):
                self._parts.append(_Part(vitals.steps))
            part = self._parts[number]
            part.look(vitals, self.tick_s)
            if self._canary_interval_s > 0 and part.canary is None and part.quiet_s >= self._canary_interval_s:
                part.canary = in_background(self._try(number, part), f"canary-{number}")

    async def _tell(self) -> None:
        stalled = self.stalled
        if stalled == self._told_stalled:
            return
        try:
            await (self._on_stall() if stalled else self._on_recovery())
        except DynamoError as error:
            logger.warning("%s, will be tried again", error)
        else:
            self._told_stalled = stalled

    async def _try(self, number: int, part: "_Part") -> None:
        part.asked = True
        try:
            await self._subject.canary(number)
        except Exception as error:  # noqa: BLE001 - the task's boundary; whatever it is, there was no answer
            logger.warning("the canary has failed: %s: %s", type(error).__name__, error)
            part.quiet_s = 0.0  # until the next one
        else:
            part.progressed()
        finally:
            part.canary = None


class _Part:
    """What is known of one part."""

    __slots__ = ("asked", "canary", "due_s", "quiet_s", "steps")

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.quiet_s = 0.0  # since its last step, or the last canary that has failed
        self.due_s = 0.0  # for how long a step is due
        self.asked = False  # by a canary, which has not been answered
        self.canary: asyncio.Task[None] | None = None

    def look(self, vitals: Vitals, tick_s: float) -> None:
        if vitals.steps != self.steps:
            self.steps = vitals.steps
            self.progressed()
            return
        self.quiet_s += tick_s
        self.due_s = self.due_s + tick_s if vitals.busy or self.asked else 0.0

    def progressed(self) -> None:
        self.quiet_s = self.due_s = 0.0
        self.asked = False
