"""A run: clients ask all the time, faults happen as scheduled, and nothing may be lost."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from .client import BrokenError, Gaps, RefusedError, ask
from .faults import ANYWHERE, Fault, Kind, schedule
from .fleet import Fleet, Frontend, Place, Size, Worker, fleet
from .leftovers import complaints, holdings
from .questions import Question, questions, read
from .report import Report

CLIENTS = 32
QUESTIONS = 64
DELAY_S = 0.3


async def run(model: Path, *, seed: int, seconds: float, say: Callable[[str], None] = lambda _: None) -> Report:
    """The whole of it; `say` hears of each fault as it begins."""
    report = Report(seed=seed, seconds=seconds)
    async with fleet(model, Size()) as disturbed:
        asked = await questions(disturbed.frontends[0].url, seed, QUESTIONS)
        before = {place.name: await holdings(place) for place in disturbed.places}
        chaos = Chaos(disturbed, report, say)
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(_client(random.Random(f"{seed}-{number}"), disturbed, asked, report, over))
            await chaos.happens(schedule(seed, seconds, (*ANYWHERE, Kind.WIPE_DISCOVERY)))
            over.set()
        report.left += await complaints(disturbed, before)
    return report


class Chaos:
    """Does to a fleet what a schedule says, as far as somebody is left to go on."""

    def __init__(self, disturbed: Fleet, report: Report, say: Callable[[str], None]) -> None:
        self._fleet = disturbed
        self._report = report
        self._say = say

    async def happens(self, faults: Sequence[Fault]) -> None:
        """Returns when all is as it was."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0, began_s + fault.at_s - loop.time()))
                happening = self._begin(fault)
                if happening is None:
                    self._report.passed_over += 1
                else:
                    self._report.faults[fault.kind] += 1
                    group.create_task(happening)

    def _begin(self, fault: Fault) -> Coroutine[Any, Any, None] | None:
        """None where whoever it would hit is the last one that is left."""
        if fault.kind is Kind.WIPE_DISCOVERY:
            self._say(f"{fault.at_s:6.1f} s  {fault.kind}")
            return self._fleet.wipe_discovery()
        frontends, workers = self._fleet.frontends, self._fleet.workers
        if fault.kind in (Kind.DRAIN_FRONTEND, Kind.KILL_FRONTEND):
            places: list[Place] = [f for f in frontends if not f.disturbed] if _spare(frontends) else []
        else:
            spare = _spare([worker for worker in workers if worker.decodes])
            places = [w for w in workers if not w.disturbed and (spare or not w.decodes)]
        if not places:
            return None
        place = places[fault.one_of(len(places))]
        place.disturbed = True
        place.disturbances += 1
        self._say(f"{fault.at_s:6.1f} s  {fault.kind}: {place.name}, {fault.lasts_s:.1f} s")
        return self._disturb(place, fault)

    async def _disturb(self, place: Place, fault: Fault) -> None:
        match fault.kind, place:
            case ((Kind.KILL_WORKER | Kind.KILL_FRONTEND), _):
                await place.kill()
            case ((Kind.DRAIN_WORKER | Kind.DRAIN_FRONTEND), _):
                code = await place.drain()
                if code != 0:
                    self._report.left.append(f"{place.name} was told to end and did so with {code}")
            case Kind.FREEZE_WORKER, _:
                await place.freeze(fault.lasts_s)
            case Kind.CUT, Worker():
                await place.cut(fault.lasts_s)
            case Kind.DELAY, Worker():
                await place.delay(fault.lasts_s, DELAY_S)
        place.disturbed = False


def _spare(places: Sequence[Place]) -> bool:
    """Whether one may be disturbed and another is not."""
    return sum(not place.disturbed for place in places) > 1


async def _client(
    rng: random.Random, disturbed: Fleet, asked: Sequence[Question], report: Report, over: asyncio.Event
) -> None:
    """Asks one question after the other, each of a frontend of which nobody has told it that it ends."""
    while not over.is_set():
        question = rng.choice(asked)
        frontend = rng.choice([frontend for frontend in disturbed.frontends if not frontend.disturbed])
        while await _asked(question, frontend, report):  # until its own frontend did not end meanwhile
            frontend = rng.choice([frontend for frontend in disturbed.frontends if not frontend.disturbed])


async def _asked(question: Question, frontend: Frontend, report: Report) -> bool:
    """Whether the question has to be asked again."""
    disturbances, gaps = frontend.disturbances, Gaps()
    what = f"{question.path} {question.body}"[:200]
    try:
        answer = read(await ask(frontend.url, question.path, question.body, gaps))
    except BrokenError as error:
        if frontend.disturbances != disturbances:
            report.asked_again += 1
            return True
        report.lost.append(f"{frontend.name}: {error}: {what}")
    except (RefusedError, TimeoutError, ValueError) as error:
        report.lost.append(f"{frontend.name}: {error!r}: {what}")
    else:
        if answer == question.expected:
            report.answered += 1
            report.tokens += answer.completion_tokens
        else:
            report.wrong.append(f"{frontend.name}: {answer} instead of {question.expected}: {what}")
        report.first_token_s = max(report.first_token_s, gaps.first_s)
        report.silence_s = max(report.silence_s, gaps.later_s)
    return False
