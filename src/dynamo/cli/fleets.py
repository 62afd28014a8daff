"""The workers of a deployment: which there are, and how many there shall be."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dynamo.cli.deployment import Deployment, worker_name
from dynamo.cli.process import Child, State
from dynamo.cli.supervisor import Supervisor
from dynamo.errors import InvalidRequestError, UnsupportedFeatureError
from dynamo.planner.decision import Action, Scale
from dynamo.planner.supervision import SupervisedFleet, SupervisedFleets
from dynamo.protocols.model_card import WorkerType

WORKERS_MAX = 256  # of a role: more on one host are a mistake


@dataclass(slots=True, kw_only=True, eq=False)
class Member:
    """A worker process."""

    child: Child
    role: WorkerType
    number: int  # in its name: the smallest that no other of its role has
    position: int  # of its ports: the smallest that no other has


class Fleets:
    """Starts and ends workers. All of them are children of one supervisor."""

    def __init__(self, deployment: Deployment, supervisor: Supervisor) -> None:
        self._deployment = deployment
        self._supervisor = supervisor
        self._desired = Counter(deployment.workers())
        self._members: list[Member] = []  # in the order of their start; some may have ended

    def start(self) -> list[Child]:
        """Starts those that there are at first, and must be."""
        return [self._start(role, must_start=True) for role in self._deployment.workers()]

    def state(self) -> SupervisedFleets:
        """As the planner asks for it."""
        return SupervisedFleets(fleets=tuple(self._fleet(role) for role in self._roles()))

    def apply(self, action: Action) -> None:
        """Begins with it; state() shows how far it has come.

        Raises InvalidRequestError for a role that the deployment has not, or a number that is out of bounds.
        """
        if not isinstance(action, Scale):
            raise UnsupportedFeatureError("workers of this deployment cannot turn from one role to another")
        if action.role not in self._roles():
            raise InvalidRequestError(f"this deployment has no {action.role.value} workers", param="role")
        if not 0 <= action.workers <= WORKERS_MAX:
            raise InvalidRequestError(f"{action.workers} workers: it must be 0 to {WORKERS_MAX}", param="workers")
        self._scale(action.role, action.workers)

    def _scale(self, role: WorkerType, workers: int) -> None:
        self._desired[role] = workers
        staying = [member for member in self._living(role) if not member.child.stopping]
        for _ in range(workers - len(staying)):
            self._start(role, must_start=False)
        for member in surplus(staying, len(staying) - workers):
            self._supervisor.end(member.child)

    def _start(self, role: WorkerType, *, must_start: bool) -> Child:
        number = _smallest_but({member.number for member in self._living(role)}, at_least=1)
        position = _smallest_but({member.position for member in self._living()}, at_least=0)
        command = self._deployment.worker(role, position)
        child = self._supervisor.start(worker_name(role, number), command, must_start=must_start)
        self._members.append(Member(child=child, role=role, number=number, position=position))
        return child

    def _roles(self) -> Sequence[WorkerType]:
        """Those that a planner may scale: prefill workers too where there are none at the moment."""
        if self._deployment.config.decode_workers:
            return [WorkerType.Prefill, WorkerType.Decode]
        return [WorkerType.Aggregated]

    def _living(self, role: WorkerType | None = None) -> list[Member]:
        """Those that have not ended, of a role or of all."""
        self._members = [member for member in self._members if member.child.state is not State.STOPPED]
        return [member for member in self._members if role in (None, member.role)]

    def _fleet(self, role: WorkerType) -> SupervisedFleet:
        members, now_s = self._living(role), time.monotonic()
        staying = [member.child for member in members if not member.child.stopping]
        starting_s = (now_s - child.down_since_s for child in staying if child.state is not State.UP)
        return SupervisedFleet(
            role=role,
            desired=self._desired[role],
            ready=sum(child.state is State.UP for child in staying),
            starting_s=tuple(sorted(starting_s, reverse=True)),
            draining=len(members) - len(staying),
        )


def surplus(members: Sequence[Member], count: int) -> Iterator[Member]:
    """Which to end when there are so many too many; `members` in the order of their start.

    Those that do not serve go first, nobody misses them; then the newest, whose KV caches have seen least. How busy
    each is does not matter: all of them finish what they have.
    """
    order = list(reversed(members))
    order.sort(key=lambda member: member.child.state is State.UP)  # stable
    yield from order[: max(0, count)]


def _smallest_but(taken: set[int], *, at_least: int) -> int:
    number = at_least
    while number in taken:
        number += 1
    return number
