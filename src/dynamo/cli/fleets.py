"""The workers of a deployment: which there are, and how many there shall be."""

import asyncio
import time

from dynamo.cli.deployment import WORKERS_MAX, Deployment, worker_name
from dynamo.cli.members import Member, smallest_but, surplus
from dynamo.cli.process import State
from dynamo.cli.supervisor import Supervisor
from dynamo.cli.worker_roles import WorkerRoles
from dynamo.errors import DynamoError, InvalidRequestError, UnavailableError, UnsupportedFeatureError
from dynamo.planner.decision import Action, Convert, Scale
from dynamo.planner.supervision import SupervisedFleet, SupervisedFleets
from dynamo.protocols.model_card import WorkerType


class Fleets:
    """Starts, ends and converts workers. All of them are children of one supervisor."""

    def __init__(self, deployment: Deployment, supervisor: Supervisor, worker_roles: WorkerRoles) -> None:
        self._deployment = deployment
        self._supervisor = supervisor
        self._worker_roles = worker_roles
        self._members: list[Member] = []  # in the order of their start; some may have ended
        self._conversions: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Starts those that there are at first, and must be."""
        for role in self._deployment.workers():
            self._start(role, must_start=True)

    def state(self) -> SupervisedFleets:
        """As the planner asks for it."""
        return SupervisedFleets(
            fleets=tuple(self._fleet(role) for role in self._deployment.roles),
            converts=self._deployment.converts,
            problems=tuple(member.problem for member in self._living() if member.stays and member.problem),
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

    def _convert(self, source: WorkerType, destination: WorkerType, workers: int) -> None:
        if source is destination:
            raise InvalidRequestError(f"a {source.value} worker is one already", param="destination")
        serving = [member for member in self._living(source) if member.serves]
        if len(serving) < workers:
            raise UnavailableError(f"{len(serving)} {source.value} workers serve now, not {workers}")
        if source is WorkerType.Decode and len(serving) == workers:  # each of them would still see the others decode
            raise InvalidRequestError("nobody would decode", param="workers")
        for member in surplus(serving, workers):
            self._move(member, destination)
            member.converting_since_s = time.monotonic()
            task = asyncio.create_task(self._turn(member, source), name=f"convert-{member.child.name}")
            self._conversions.add(task)
            task.add_done_callback(self._conversions.discard)

    async def _turn(self, member: Member, source: WorkerType) -> None:
        member.trouble = ""
        if (pid := member.child.pid) is not None:  # else it has just ended, and comes back in its new role by itself
            await self._ask_to_turn(member, pid, source)
        member.converting_since_s = None

    async def _ask_to_turn(self, member: Member, pid: int, source: WorkerType) -> None:
        """If nobody knows what has come of it, the worker is restarted in the role that it shall have."""
        try:
            async with asyncio.timeout(self._supervisor.end_timeout_s):
                await self._worker_roles.change(pid, member.role)
        except InvalidRequestError as error:
            if member.stays:
                self._move(member, source)
                self._trouble(member, f"has to stay a {source.value} worker: {error}")
        except (DynamoError, TimeoutError) as error:
            if member.stays and member.child.pid == pid:
                self._trouble(member, f"is restarted to become a {member.role.value} worker: {error or 'no answer'}")
                await self._supervisor.restart(member.child)
                member.trouble = ""

    def _trouble(self, member: Member, text: str) -> None:
        member.trouble = text
        self._supervisor.say(member.child, text)

    def _move(self, member: Member, role: WorkerType) -> None:
        """Into the books of another role; its next start would be in that one."""
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
            desired=len(staying),
            ready=sum(member.serves for member in staying),
            starting_s=tuple(sorted((m.not_serving_s() for m in staying if not m.serves), reverse=True)),
            draining=len(members) - len(staying),
        )
