"""Runs: clients ask all the time, faults happen, and nothing may be lost."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

from .chaos import Chaos
from .clients import clients
from .faults import ON_ONE_HOST, WITH_BROKERS, Fault, Kind, schedule
from .fleet import Size, fleet
from .leftovers import complaints, holdings
from .questions import questions
from .report import Report

CLIENTS = 32
QUESTIONS = 64
_ALONE_S = 2.0  # before and after a fault that is looked at by itself
_FAULT_S = 8.0


def kinds(size: Size) -> tuple[Kind, ...]:
    """The faults that such a fleet can have."""
    return WITH_BROKERS if size.brokers else ON_ONE_HOST


async def run(
    model: Path, size: Size, *, seed: int, seconds: float, say: Callable[[str], None] = lambda _: None
) -> Report:
    """Everything at once; `say` hears of each fault as it begins."""
    turns = [(seconds, schedule(seed, seconds, kinds(size)))]
    async with aclosing(_reports(model, size, seed, turns, say)) as reports:
        return await anext(reports)


async def each(
    model: Path, size: Size, *, seed: int, times: int, say: Callable[[str], None] = lambda _: None
) -> AsyncIterator[Report]:
    """One kind after the other, `times` times each, in quiet between them: what each costs by itself."""
    turn_s = 2 * _ALONE_S + _FAULT_S
    whom = [(i + 0.5) / times for i in range(times)]
    turns = [
        (times * turn_s, [_alone(kind, i * turn_s + _ALONE_S, whom[i]) for i in range(times)])
        for kind in sorted(set(kinds(size)))
    ]
    async with aclosing(_reports(model, size, seed, turns, say)) as reports:
        async for report in reports:
            yield report


def _alone(kind: Kind, at_s: float, whom: float) -> Fault:
    return Fault(at_s=at_s, kind=kind, lasts_s=_FAULT_S, whom=whom)


async def _reports(
    model: Path, size: Size, seed: int, turns: Sequence[tuple[float, Sequence[Fault]]], say: Callable[[str], None]
) -> AsyncGenerator[Report]:
    """One for each of the schedules, each of which has so many seconds."""
    async with fleet(model, size) as disturbed:
        asked = await questions(disturbed.frontends[0].url, seed, QUESTIONS)
        before = {place.name: await holdings(place) for place in disturbed.places}
        for seconds, faults in turns:
            report = Report(seed=seed, seconds=seconds)
            async with clients(CLIENTS, disturbed, asked, report):
                await Chaos(disturbed, report, say).happens(faults)
            report.left += await complaints(disturbed, before)
            yield report
