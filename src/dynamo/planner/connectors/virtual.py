"""Workers that somebody else starts and ends: the target is published, and whoever carries it out acknowledges it."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence

from dynamo.errors import InvalidRequestError, UnavailableError, UnsupportedFeatureError
from dynamo.planner.config import WORKERS_MAX
from dynamo.planner.decision import Action, Convert
from dynamo.planner.observation import Fleet
from dynamo.planner.scaling import ScalingRequest, ScalingTarget
from dynamo.planner.workers import Workers
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.component import Endpoint


class VirtualConnector:
    """What is there shows by discovery; what should be there, by the last target or what was said to it."""

    converts = False  # who starts and ends processes need not be able to

    def __init__(self, workers: Workers, acknowledge_timeout_s: float) -> None:
        """A target that nobody has acknowledged for so long is a problem."""
        self._workers = workers
        self._acknowledge_timeout_s = acknowledge_timeout_s
        self._desired: dict[WorkerType, int] = {}  # of each role that was ever seen
        self._decided: set[WorkerType] = set()  # roles whose number was decided upon, here or outside
        self._missing_since_s: dict[WorkerType, list[float]] = {}  # workers that are not there yet, ascending
        self._id = 0
        self._acknowledged = 0
        self._decided_s = time.monotonic()
        self._news = asyncio.Event()  # set at the next target, which leaves another in its place

    @property
    def problems(self) -> Sequence[str]:
        age_s = time.monotonic() - self._decided_s
        if self._id == self._acknowledged or age_s < self._acknowledge_timeout_s:
            return ()
        within = f"within {self._acknowledge_timeout_s:g} s"
        return (f"nobody has acknowledged target {self._id} {within}: `dynamo planner acknowledge {self._id}` does",)

    async def serve(self, endpoint: Endpoint) -> None:
        """Tells the target there, until its runtime shuts down. Raises what Endpoint.start() raises."""
        await endpoint.start(self.scaling, request_type=ScalingRequest)

    async def scaling(self, request: ScalingRequest) -> AsyncIterator[ScalingTarget]:
        """The endpoint's handler. Raises InvalidRequestError for what cannot be acknowledged."""
        if request.acknowledge is not None:
            self._acknowledge(request.acknowledge, request.workers)
        elif request.workers is not None:
            raise InvalidRequestError("workers belong to the target that they acknowledge", param="workers")
        while True:
            news = self._news
            yield self._target()
            if not request.follow:
                return
            await news.wait()

    async def fleets(self) -> Mapping[WorkerType, Fleet]:
        """Of roles that there are, or were; UnavailableError when no worker has ever been there."""
        found = self._workers.by_role()
        self._forget_another_kind(found.keys())
        for role, workers in found.items():
            if role not in self._decided:
                self._desired[role] = max(self._desired.get(role, 0), len(workers))
        if not self._desired:
            raise UnavailableError("no worker has been seen yet, so that it is not known of which kind they are")
        return {role: self._fleet(role, len(found.get(role, ()))) for role in self._desired}

    async def apply(self, action: Action) -> None:
        if isinstance(action, Convert):
            raise UnsupportedFeatureError("the virtual connector cannot turn workers from one role to another")
        self._desired[action.role] = action.workers
        self._decided.add(action.role)
        self._id += 1
        self._decided_s = time.monotonic()
        self._news.set()
        self._news = asyncio.Event()

    async def close(self) -> None:
        self._workers.close()

    def _forget_another_kind(self, found: Collection[WorkerType]) -> None:
        """Who has only workers that do all of a request is done with those that did a part, and the other way round."""
        for role in [role for role in self._desired if found and role not in found]:
            if (role is WorkerType.Aggregated) != (WorkerType.Aggregated in found):
                del self._desired[role]

    def _acknowledge(self, target: int, workers: Mapping[WorkerType, int] | None) -> None:
        """That of an earlier target than the present one changes nothing: it has been overtaken."""
        if not 0 <= target <= self._id:
            raise InvalidRequestError(f"there is no target {target}, the last one is {self._id}", param="acknowledge")
        workers = workers or {}
        for role, count in workers.items():
            if role not in self._desired:
                raise InvalidRequestError(f"there are no {role.value} workers here", param="workers")
            if not 0 <= count <= WORKERS_MAX:
                raise InvalidRequestError(f"{count} {role.value} workers there cannot be", param="workers")
        if target == self._id:
            self._acknowledged = target
            self._desired |= workers
            self._decided |= workers.keys()

    def _target(self) -> ScalingTarget:
        return ScalingTarget(
            id=self._id,
            workers=dict(self._desired),
            acknowledged=self._id == self._acknowledged,
            age_s=time.monotonic() - self._decided_s,
        )

    def _fleet(self, role: WorkerType, there: int) -> Fleet:
        """Those beyond the desired number are on their way out, whichever of them they are."""
        desired = self._desired[role]
        now_s = time.monotonic()
        missing = max(0, desired - there)
        since_s = self._missing_since_s.get(role, [])
        since_s = since_s[max(0, len(since_s) - missing) :]  # who has been started first is there first
        since_s += [now_s] * (missing - len(since_s))
        self._missing_since_s[role] = since_s
        return Fleet(
            desired=desired,
            ready=min(there, desired),
            starting_s=tuple(now_s - each_s for each_s in since_s),
            draining=max(0, there - desired),
        )
