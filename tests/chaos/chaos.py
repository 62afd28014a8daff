"""What a schedule says, done to a fleet."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from .faults import Fault, Kind
from .fleet import Fleet, Place, Worker
from .report import Report

DELAY_S = 0.3


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
        if fault.kind in (Kind.WIPE_DISCOVERY, Kind.RESTART_ETCD, Kind.RESTART_NATS):
            self._say(f"{fault.at_s:6.1f} s  {fault.kind}, {fault.lasts_s:.1f} s")
            return self._disturb_all(fault)
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

    async def _disturb_all(self, fault: Fault) -> None:
        match fault.kind:
            case Kind.WIPE_DISCOVERY:
                await self._fleet.wipe_discovery()
            case Kind.RESTART_ETCD:
                await self._fleet.restart_etcd(fault.lasts_s)
            case Kind.RESTART_NATS:
                await self._fleet.restart_nats(fault.lasts_s)

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
