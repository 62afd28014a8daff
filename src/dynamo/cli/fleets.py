"""The workers of a deployment: which there are, and how many there shall be."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator

from dynamo.cli.deployment import Deployment, worker_name
from dynamo.cli.members import Member, smallest_but, surplus
from dynamo.cli.process import State
from dynamo.cli.supervisor import Supervisor
from dynamo.cli.worker_roles import NoWorkerRoles, WorkerRoles
from dynamo.errors import DynamoError, InvalidRequestError, UnavailableError, UnsupportedFeatureError
from dynamo.planner.decision import Action, Convert, Scale
from dynamo.planner.supervision import SupervisedFleet, SupervisedFleets
from dynamo.protocols.model_card import WorkerType

WORKERS_MAX = 256  # of a role: more on one host are a mistake


class Fleets:
    """Starts, ends and converts workers. All of them are children of one supervisor."""

    def __init__(self, deployment: Deployment, supervisor: Supervisor) -> None:
        self.worker_roles: WorkerRoles = NoWorkerRoles()
        self._deployment = deployment
        self._supervisor = supervisor
        self._desired = Counter(deployment.workers())
        self._members: list[Member] = []  # in the order of their start; some may have ended
        self._conversions: set[asyncio.Task[None]] = set()
        self._refusal = ""  # why the last conversion has failed

    def start(self) -> None:
        """Starts those that there are at first, and must be."""
        for role in self._deployment.workers():
            self._start(role, must_start=True)

    def state(self) -> SupervisedFleets:
        """As the planner asks for it."""
        return SupervisedFleets(
            fleets=tuple(self._fleet(role) for role in self._deployment.roles),
            converts=self._deployment.converts,
            problems=tuple(self._problems()),
        )

    def apply(self, action: Action) -> None:
        """Begins with it; state() shows how far it has come.

        Raises InvalidRequestError for what can never be, UnavailableError for what cannot be now.
        """
        match action:
            case Scale(role=role, workers=workers):
                self._check(role, workers)
                self._scale(role, workers)
            case Convert() if not self._deployment.converts:
                raise UnsupportedFeatureError("workers of this deployment cannot turn from one role to another")
            case Convert(source=source, destination=destination, workers=workers):
                self._check(source, workers)
                self._check(destination, workers)
                self._convert(source, destination, workers)

    def close(self) -> None:
        """Waits for no conversion any more."""
        for task in self._conversions:
            task.cancel()

    def _scale(self, role: WorkerType, workers: int) -> None:
        staying = [member for member in self._living(role) if member.stays]
        for _ in range(workers - len(staying)):
            self._start(role, must_start=False)
        for member in surplus(staying, len(staying) - workers):
            self._supervisor.end(member.child)
        self._desired[role] = workers

    def _convert(self, source: WorkerType, destination: WorkerType, workers: int) -> None:
        serving = [member for member in self._living(source) if member.serves]
        if len(serving) < workers:
            raise UnavailableError(f"only {len(serving)} {source.value} workers serve now")
        for member in surplus(serving, workers):
            task = asyncio.create_task(self._turn(member, source, destination), name=f"convert-{member.child.name}")
            self._move(member, destination)
            member.converting_since_s = time.monotonic()
            self._conversions.add(task)
            task.add_done_callback(self._conversions.discard)

    async def _turn(self, member: Member, source: WorkerType, destination: WorkerType) -> None:
        """Has the worker change. If nobody knows what came of it, it is restarted in the role that it shall have.

        One that ends meanwhile comes back in that role by itself.
        """
        pid = member.child.pid
        try:
            async with asyncio.timeout(self._supervisor.end_timeout_s):
                await self.worker_roles.change(pid or 0, destination)
        except InvalidRequestError as error:
            self._move(member, source)
            self._refusal = f"{member.child.name} has to stay a {source.value} worker: {error}"
        except (DynamoError, TimeoutError) as error:
            self._refusal = f"{member.child.name} is restarted to become one: {error or 'no answer'}"
            if member.child.pid == pid and member.stays:
                member.child.restart()
        else:
            self._refusal = ""
        member.converting_since_s = None

    def _move(self, member: Member, role: WorkerType) -> None:
        """Into the books of another role; its next start would be in that one."""
        self._desired[member.role] -= 1
        self._desired[role] += 1
        member.number = smallest_but({other.number for other in self._living(role)}, at_least=1)
        member.role = role
        member.child.name = worker_name(role, member.number)
        member.child.command = self._deployment.worker(role, member.position)

    def _start(self, role: WorkerType, *, must_start: bool) -> None:
        number = smallest_but({member.number for member in self._living(role)}, at_least=1)
        position = smallest_but({member.position for member in self._living()}, at_least=0)
        command = self._deployment.worker(role, position)
        child = self._supervisor.start(worker_name(role, number), command, must_start=must_start)
        self._members.append(Member(child=child, role=role, number=number, position=position))

    def _check(self, role: WorkerType, workers: int) -> None:
        if role not in self._deployment.roles:
            raise InvalidRequestError(f"this deployment has no {role.value} workers", param="role")
        if not 0 <= workers <= WORKERS_MAX:
            raise InvalidRequestError(f"{workers} workers: it must be 0 to {WORKERS_MAX}", param="workers")

    def _living(self, role: WorkerType | None = None) -> list[Member]:
        """Those that have not ended, of a role or of all."""
        self._members = [member for member in self._members if member.child.state is not State.STOPPED]
        return [member for member in self._members if role in (None, member.role)]

    def _fleet(self, role: WorkerType) -> SupervisedFleet:
        members = self._living(role)
        staying = [member for member in members if member.stays]
        return SupervisedFleet(
            role=role,
            desired=self._desired[role],
            ready=sum(member.serves for member in staying),
            starting_s=tuple(sorted((m.not_serving_s() for m in staying if not m.serves), reverse=True)),
            draining=len(members) - len(staying),
        )

    def _problems(self) -> Iterator[str]:
        for member in self._living():
            if member.child.failure and member.stays:
                yield f"{member.child.name} {member.child.failure}"
        if self._refusal:
            yield self._refusal
