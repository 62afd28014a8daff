"""How many workers there are, which come and which go."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dynamo.cli import process as process_module
from dynamo.cli.deployment import WORKERS_MAX, Deployment, ServeConfig
from dynamo.cli.fleets import Fleets
from dynamo.cli.process import Child, State
from dynamo.cli.supervisor import Supervisor
from dynamo.errors import InvalidRequestError, UnavailableError, UnsupportedFeatureError
from dynamo.planner.decision import Action, Convert, Scale
from dynamo.planner.supervision import SupervisedFleet
from dynamo.protocols.model_card import WorkerType
from dynamo.testing import eventually, within

A, P, D = WorkerType.Aggregated, WorkerType.Prefill, WorkerType.Decode

# A worker that is ready when there is a file "ready" or one of that name with its position, and drains until "drained".
WORKER = """
import os, pathlib, signal, sys, time
directory, position = pathlib.Path(sys.argv[1]), sys.argv[2]
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
def has(*names): return any((directory / name).exists() for name in names)
(directory / ("began" + position)).touch()
while not (told or has("ready", "ready" + position)): time.sleep(0.01)
print("ready: ", os.getpid(), flush=True)
while not (told and has("drained")): time.sleep(0.01)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripted(Deployment):
    """One whose workers are small programs."""

    directory: Path
    workers_made: list[tuple[WorkerType, int]] = field(default_factory=list)  # role and position
    broken: list[bool] = field(default_factory=list)  # if there is anything in it, workers fail

    def worker(self, role: WorkerType, position: int) -> list[str]:
        self.workers_made.append((role, position))
        if self.broken:
            return [sys.executable, "-c", "import sys; sys.exit(3)"]
        return [sys.executable, "-c", WORKER, str(self.directory), str(position)]


class Roles:
    """Workers that say what came of being asked when a test has them say it."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, WorkerType]] = []
        self.outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def change(self, pid: int, role: WorkerType) -> None:
        self.asked.append((pid, role))
        await self.outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Fleets, and what steers their workers."""

    deployment: Scripted
    supervisor: Supervisor
    roles: Roles
    fleets: Fleets

    def allow(self, what: str) -> None:
        (self.deployment.directory / what).touch()

    def names(self) -> list[str]:
        return [child.name for child in self.supervisor.children]

    def child(self, name: str) -> Child:
        return next(child for child in self.supervisor.children if child.name == name)

    def fleet(self, role: WorkerType = A) -> SupervisedFleet:
        return next(fleet for fleet in self.fleets.state().fleets if fleet.role is role)

    def counts(self, role: WorkerType = A) -> tuple[int, int, int, int]:
        """Desired, ready, starting, draining."""
        fleet = self.fleet(role)
        return fleet.desired, fleet.ready, len(fleet.starting_s), fleet.draining

    def scale(self, workers: int, role: WorkerType = A) -> None:
        self.fleets.apply(Scale(role=role, workers=workers))

    def convert(self, workers: int, source: WorkerType = D, destination: WorkerType = P) -> None:
        self.fleets.apply(Convert(source=source, destination=destination, workers=workers))

    async def until(self, *counts: int, role: WorkerType = A) -> None:
        await eventually(lambda: self.counts(role) == counts)


@asynccontextmanager
async def world(directory: Path, config: ServeConfig, allowed: Sequence[str] = ("ready",)) -> AsyncIterator[World]:
    for what in allowed:
        (directory / what).touch()
    deployment = Scripted(config=config, model_name="m", model_dir="/m", worker_flags=(), directory=directory)
    supervisor = Supervisor([], os.environ, lambda *_: None, end_timeout_s=10)
    roles = Roles()
    fleets = Fleets(deployment, supervisor, roles)
    fleets.start()
    try:
        yield World(deployment=deployment, supervisor=supervisor, roles=roles, fleets=fleets)
    finally:
        supervisor.kill()
        await within(supervisor.close())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_BACKOFF_S", (0.01,))


TWO = ServeConfig(engine="mocker", workers=2)


async def test_more_and_fewer(tmp_path: Path) -> None:
    async with world(tmp_path, TWO, allowed=["ready", "drained"]) as w:
        await w.until(2, 2, 0, 0)
        w.scale(4)
        assert w.counts()[0] == 4
        await w.until(4, 4, 0, 0)
        assert w.names() == ["worker-1", "worker-2", "worker-3", "worker-4"]
        w.scale(1)
        await w.until(1, 1, 0, 0)
        assert w.names() == ["worker-1"]  # the one that has served longest


async def test_names_and_ports_of_those_that_drain_are_taken(tmp_path: Path) -> None:
    async with world(tmp_path, TWO) as w:
        await w.until(2, 2, 0, 0)
        w.scale(1)
        await w.until(1, 1, 0, 1)
        w.scale(2)
        await w.until(2, 2, 0, 1)
        assert w.names() == ["worker-1", "worker-2", "worker-3"]
        w.allow("drained")
        await w.until(2, 2, 0, 0)
        w.scale(3)
        await w.until(3, 3, 0, 0)
        assert sorted(w.names()) == ["worker-1", "worker-2", "worker-3"]
        assert [position for _, position in w.deployment.workers_made] == [0, 1, 2, 1]


async def test_those_that_do_not_serve_yet_go_first(tmp_path: Path) -> None:
    async with world(tmp_path, TWO, allowed=["ready1", "drained"]) as w:
        await w.until(2, 1, 1, 0)
        w.scale(1)
        await w.until(1, 1, 0, 0)
        assert w.names() == ["worker-2"]


async def test_how_long_it_takes_to_start(tmp_path: Path) -> None:
    async with world(tmp_path, ServeConfig(engine="mocker"), allowed=[]) as w:
        (first,) = w.fleet().starting_s
        await eventually(lambda: w.fleet().starting_s > (first,))
        w.allow("ready")
        await w.until(1, 1, 0, 0)
        os.kill(int(w.child("worker-1").ready), 9)
        await w.until(1, 0, 1, 0)
        assert w.fleet().starting_s < (first + 5,)  # since the crash, not since the beginning
        await w.until(1, 1, 0, 0)


async def test_one_that_is_ready_only_after_it_was_told_to_end(tmp_path: Path) -> None:
    async with world(tmp_path, ServeConfig(engine="mocker"), allowed=[]) as w:
        await eventually((tmp_path / "began0").exists)
        w.scale(0)
        await within(w.child("worker-1").was_up.wait())
        assert w.counts() == (0, 0, 0, 1)
        w.allow("drained")
        await w.until(0, 0, 0, 0)


async def test_prefill_and_decode(tmp_path: Path) -> None:
    config = ServeConfig(engine="mocker", prefill_workers=1, decode_workers=1)
    async with world(tmp_path, config, allowed=["ready", "drained"]) as w:
        w.scale(3, D)
        await w.until(3, 3, 0, 0, role=D)
        await w.until(1, 1, 0, 0, role=P)
        w.scale(0, P)
        await w.until(0, 0, 0, 0, role=P)
        w.scale(1, P)
        await w.until(1, 1, 0, 0, role=P)
        assert w.names() == ["decode-1", "decode-2", "decode-3", "prefill-1"]
        assert [position for _, position in w.deployment.workers_made] == [0, 1, 2, 3, 0]


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (Scale(role=P, workers=1), InvalidRequestError),
        (Scale(role=A, workers=-1), InvalidRequestError),
        (Scale(role=A, workers=WORKERS_MAX + 1), InvalidRequestError),
        (Convert(source=A, destination=P, workers=1), UnsupportedFeatureError),
    ],
)
async def test_what_cannot_be(tmp_path: Path, action: Action, error: type[Exception]) -> None:
    async with world(tmp_path, TWO) as w:
        with pytest.raises(error):
            w.fleets.apply(action)
        assert w.counts()[0] == 2


@asynccontextmanager
async def apart(directory: Path, allowed: Sequence[str] = ("ready", "drained")) -> AsyncIterator[tuple[World, Roles]]:
    """One prefill and two decode workers, all up."""
    config = ServeConfig(engine="mocker", prefill_workers=1, decode_workers=2)
    async with world(directory, config, allowed) as w:
        await w.until(1, 1, 0, 0, role=P)
        await w.until(2, 2, 0, 0, role=D)
        yield w, w.roles


async def test_a_worker_turns_to_another_role(tmp_path: Path) -> None:
    async with apart(tmp_path) as (w, roles):
        child = w.child("decode-2")
        pid = child.pid
        w.convert(1)
        assert (w.counts(D), w.counts(P)) == ((1, 1, 0, 0), (2, 1, 1, 0))
        assert child.name == "prefill-2"
        await eventually(lambda: roles.asked == [(pid, P)])
        roles.outcome.set_result(None)
        await w.until(2, 2, 0, 0, role=P)
        assert child.pid == pid
        assert w.fleets.state().problems == ()
        assert w.deployment.workers_made[-1] == (P, 2)  # what a restart of it would run


async def test_a_worker_that_refuses(tmp_path: Path) -> None:
    async with apart(tmp_path) as (w, roles):
        roles.outcome.set_exception(UnsupportedFeatureError("not this engine"))
        w.convert(1)
        await w.until(2, 2, 0, 0, role=D)
        assert w.counts(P) == (1, 1, 0, 0)
        assert sorted(w.names()) == ["decode-1", "decode-2", "prefill-1"]
        assert w.fleets.state().problems == ("decode-2 has to stay a decode worker: not this engine",)


async def test_a_worker_of_which_nobody_knows_is_restarted(tmp_path: Path) -> None:
    async with apart(tmp_path, allowed=["ready"]) as (w, roles):
        child = w.child("decode-2")
        pid = child.pid
        roles.outcome.set_exception(UnavailableError("lost"))
        w.convert(1)
        await eventually(lambda: child.state is State.DRAINING)
        assert w.counts(P) == (2, 1, 1, 0), "it finishes what it has in its former role"
        assert w.fleets.state().problems == ("prefill-2 is restarted to become a prefill worker: lost",)
        w.allow("drained")
        await eventually(lambda: child.pid not in (pid, None))
        await w.until(2, 2, 0, 0, role=P)
        assert w.counts(D) == (1, 1, 0, 0)
        assert w.fleets.state().problems == ()


async def test_a_worker_that_dies_as_it_turns(tmp_path: Path) -> None:
    async with apart(tmp_path) as (w, roles):
        child = w.child("decode-2")
        w.convert(1)
        await eventually(lambda: bool(roles.asked))
        child.kill()
        await eventually(lambda: child.restarts == 1)
        roles.outcome.set_exception(UnavailableError("lost"))
        await w.until(2, 2, 0, 0, role=P)
        assert child.restarts == 1


@pytest.mark.parametrize("error", [UnavailableError("it drains"), UnsupportedFeatureError("not this engine")])
async def test_one_that_turns_can_be_told_to_end(tmp_path: Path, error: Exception) -> None:
    async with apart(tmp_path) as (w, roles):
        w.convert(1)
        w.scale(1, P)
        assert w.counts(P) == (1, 1, 0, 1)
        roles.outcome.set_exception(error)
        await w.until(1, 1, 0, 0, role=P)
        assert w.names() == ["prefill-1", "decode-1"]
        assert w.counts(D) == (1, 1, 0, 0)
        assert w.fleets.state().problems == ()


async def test_somebody_has_to_decode(tmp_path: Path) -> None:
    """Workers that are asked at the same moment do not know of each other."""
    async with apart(tmp_path) as (w, roles):
        with pytest.raises(InvalidRequestError, match="nobody would decode"):
            w.convert(2)
        with pytest.raises(InvalidRequestError, match="is one already"):
            w.convert(1, D, D)
        assert w.counts(D) == (2, 2, 0, 0)
        assert roles.asked == []


async def test_only_those_that_serve_can_turn(tmp_path: Path) -> None:
    async with apart(tmp_path) as (w, _):
        w.convert(1)
        with pytest.raises(UnavailableError, match="1 decode workers serve now, not 2"):
            w.convert(2)
        with pytest.raises(InvalidRequestError):
            w.convert(1, A, P)


async def test_one_that_does_not_start_is_a_problem(tmp_path: Path) -> None:
    async with world(tmp_path, TWO) as w:
        await w.until(2, 2, 0, 0)
        w.deployment.broken.append(True)
        w.scale(3)
        await eventually(lambda: w.child("worker-3").restarts >= 1)
        assert w.fleets.state().problems == ("worker-3 ended with exit code 3 before it was ready",)
        assert w.counts() == (3, 2, 1, 0)


async def test_one_that_does_not_start_any_more_is_a_problem(tmp_path: Path) -> None:
    async with world(tmp_path, TWO) as w:
        await w.until(2, 2, 0, 0)
        child = w.child("worker-2")
        child.command = [sys.executable, "-c", "import sys; sys.exit(3)"]
        child.kill()
        await eventually(lambda: child.restarts >= 2)
        assert w.fleets.state().problems == ("worker-2 ended with exit code 3 before it was ready",)


async def test_nothing_starts_while_all_are_being_ended(tmp_path: Path) -> None:
    async with world(tmp_path, TWO) as w:
        await w.until(2, 2, 0, 0)
        closing = asyncio.create_task(w.supervisor.close())
        await asyncio.wait({closing}, timeout=0)
        with pytest.raises(UnavailableError):
            w.scale(3)
        w.allow("drained")
        await within(closing)
