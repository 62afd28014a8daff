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
from dynamo.cli.deployment import Deployment, ServeConfig
from dynamo.cli.fleets import WORKERS_MAX, Fleets
from dynamo.cli.process import Child
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
    positions: list[int] = field(default_factory=list)  # of the workers that were started

    def worker(self, role: WorkerType, position: int) -> list[str]:
        self.positions.append(position)
        return [sys.executable, "-c", WORKER, str(self.directory), str(position)]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Fleets, and what steers their workers."""

    deployment: Scripted
    supervisor: Supervisor
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

    async def until(self, *counts: int, role: WorkerType = A) -> None:
        await eventually(lambda: self.counts(role) == counts)


@asynccontextmanager
async def world(directory: Path, config: ServeConfig, allowed: Sequence[str] = ("ready",)) -> AsyncIterator[World]:
    for what in allowed:
        (directory / what).touch()
    deployment = Scripted(config=config, model_name="m", model_dir="/m", worker_flags=(), directory=directory)
    supervisor = Supervisor([], os.environ, lambda *_: None, end_timeout_s=10)
    fleets = Fleets(deployment, supervisor)
    fleets.start()
    try:
        yield World(deployment=deployment, supervisor=supervisor, fleets=fleets)
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
        assert w.deployment.positions == [0, 1, 2, 1]


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
        assert w.deployment.positions == [0, 1, 2, 3, 0]


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


async def test_nothing_starts_while_all_are_being_ended(tmp_path: Path) -> None:
    async with world(tmp_path, TWO) as w:
        await w.until(2, 2, 0, 0)
        closing = asyncio.create_task(w.supervisor.close())
        await asyncio.wait({closing}, timeout=0)
        with pytest.raises(UnavailableError):
            w.scale(3)
        w.allow("drained")
        await within(closing)
