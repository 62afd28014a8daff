"""Workers of one role that are started and ended while requests arrive, and the GPU time that they take."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Protocol

from dynamo.planner.observation import Fleet
from dynamo.protocols.model_card import WorkerType
from dynamo.simulator.event_loop import EventLoop
from dynamo.simulator.journal import Journal
from dynamo.simulator.pool import Pool
from dynamo.simulator.record import RunRecord
from dynamo.simulator.router_core import RouterCore
from dynamo.simulator.trace import TraceRequest
from dynamo.simulator.worker import SimulatedWorker


class ElasticCluster(Protocol):
    """A Cluster or a DisaggCluster."""

    loop: EventLoop
    journal: Journal

    @property
    def pools(self) -> Mapping[WorkerType, Pool[RouterCore]]: ...

    def kill(self, role: WorkerType, worker: SimulatedWorker, now_s: float) -> None: ...

    def pending_tokens(self, role: WorkerType) -> Mapping[int, int]: ...

    def run(self, requests: Sequence[TraceRequest], times_s: Sequence[float]) -> RunRecord: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StartUp:
    """How long workers take from the order until they take requests."""

    time_s: float
    jitter: float = 0.0  # share of the time by which it may be shorter or longer, all of them equally likely
    failures: float = 0.0  # share of the workers that never become ready

    def draw_s(self, rng: random.Random) -> float | None:
        """For one worker; None: never."""
        if self.failures and rng.random() < self.failures:
            return None
        return self.time_s * (1 + self.jitter * rng.uniform(-1, 1)) if self.jitter else self.time_s


class Phase(Enum):
    """What a worker is at."""

    STARTING = auto()
    READY = auto()
    DRAINING = auto()  # it ends what it has, and gets no more
    ENDED = auto()


@dataclass(slots=True, kw_only=True, eq=False)
class Member:
    """One worker from its order to its end. It holds its GPUs all the time."""

    began_s: float
    phase: Phase = Phase.STARTING
    worker: SimulatedWorker | None = None  # from when on it is ready
    ended_s: float | None = None


class ElasticFleet:
    """Does what a supervisor does: it keeps as many workers as it was told, starts and drains them.

    One that is lost is replaced; one that never becomes ready holds its GPUs until it is not wanted any more.
    """

    def __init__(
        self, cluster: ElasticCluster, role: WorkerType, start_up: StartUp, rng: random.Random, *, gpus: int = 1
    ) -> None:
        """The workers that the cluster has of this role are there from the start. `gpus`: of each."""
        self.role = role
        self.gpus = gpus
        self._cluster = cluster
        self._pool = cluster.pools[role]
        self._pool.drained = self._drained
        self._start_up = start_up
        self._rng = rng
        self._members = [Member(began_s=0.0, phase=Phase.READY, worker=worker) for worker in self._pool.workers]
        self._ended: list[Member] = []
        self.desired = len(self._members)

    def scale(self, workers: int, now_s: float) -> None:
        """Has `workers` from now on: starts what is missing, ends what is too many."""
        self.desired = workers
        self._reconcile(now_s)

    def kill_one(self, now_s: float) -> None:
        """The oldest worker that takes requests is lost, if there is one."""
        for member in self._in(Phase.READY)[:1]:
            assert member.worker is not None
            self._end(member, now_s)
            self._cluster.kill(self.role, member.worker, now_s)
        self._reconcile(now_s)

    def state(self, now_s: float) -> Fleet:
        """What a connector says of it: without loads."""
        return Fleet(
            desired=self.desired,
            ready=len(self._in(Phase.READY)),
            starting_s=tuple(now_s - member.began_s for member in self._in(Phase.STARTING)),
            draining=len(self._in(Phase.DRAINING)),
        )

    def spans_s(self, until_s: float) -> list[tuple[float, float]]:
        """From when to when each worker held its GPUs, at most until then."""
        members = self._ended + self._members
        return [
            (member.began_s, until_s if member.ended_s is None else min(member.ended_s, until_s))
            for member in members
            if member.began_s < until_s
        ]

    def gpu_s(self, until_s: float) -> float:
        """GPU time until then, that of starting and draining included."""
        return self.gpus * sum(end_s - begin_s for begin_s, end_s in self.spans_s(until_s))

    def _in(self, *phases: Phase) -> list[Member]:
        """Oldest first."""
        return [member for member in self._members if member.phase in phases]

    def _reconcile(self, now_s: float) -> None:
        starting, ready = self._in(Phase.STARTING), self._in(Phase.READY)
        surplus = len(starting) + len(ready) - self.desired
        for _ in range(-surplus):
            self._start(now_s)
        if surplus > 0:
            leaving = (ready + starting)[-surplus:]  # least is lost with those that do not serve yet
            for member in reversed(leaving):
                self._withdraw(member, now_s)

    def _start(self, now_s: float) -> None:
        member = Member(began_s=now_s)
        self._members.append(member)
        time_s = self._start_up.draw_s(self._rng)
        if time_s is not None:
            self._cluster.loop.at(now_s + time_s, partial(self._ready, member))

    def _ready(self, member: Member, now_s: float) -> None:
        if member.phase is Phase.STARTING:
            member.phase = Phase.READY
            member.worker = self._pool.start_worker(now_s)

    def _withdraw(self, member: Member, now_s: float) -> None:
        if member.worker is None:
            self._end(member, now_s)
        else:
            member.phase = Phase.DRAINING
            self._pool.withdraw(member.worker, now_s)

    def _drained(self, worker: SimulatedWorker, now_s: float) -> None:
        self._end(next(member for member in self._members if member.worker is worker), now_s)

    def _end(self, member: Member, now_s: float) -> None:
        member.phase, member.ended_s = Phase.ENDED, now_s
        self._members.remove(member)
        self._ended.append(member)
