"""Children that come and go while others run."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dynamo.cli import process as process_module
from dynamo.cli.process import Child, State
from dynamo.cli.supervisor import Supervisor
from dynamo.errors import UnavailableError
from dynamo.testing import eventually, within

READY = "import sys, time; print('ready: ', file=sys.stderr, flush=True); time.sleep(60)"
FAILS = "import sys; sys.exit(2)"
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready: ', flush=True); time.sleep(60)"
# Ends some time after it was told to, and says how often it was.
FINISHES = """
import os, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: (told.append(1), print("told", len(told), flush=True)))
print("ready: ", flush=True)
while not (told and os.path.exists(sys.argv[1])):
    time.sleep(0.01)
"""


class Family:
    """A supervisor and what its children have shown."""

    def __init__(self, end_timeout_s: float) -> None:
        self.children: list[Child] = []
        self.shown: list[str] = []
        self.supervisor = Supervisor(self.children, os.environ, self._show, end_timeout_s=end_timeout_s)

    def start(self, name: str, code: str, *arguments: str, must_start: bool = False) -> Child:
        return self.supervisor.start(name, [sys.executable, "-c", code, *arguments], must_start=must_start)

    async def up(self, name: str, code: str, *arguments: str) -> Child:
        child = self.start(name, code, *arguments)
        await within(child.was_up.wait())
        return child

    def _show(self, name: str, text: str, complete: bool) -> None:
        self.shown.append(f"[{name}] {text}")


@asynccontextmanager
async def family(end_timeout_s: float = 10.0) -> AsyncIterator[Family]:
    started = Family(end_timeout_s)
    try:
        yield started
    finally:
        started.supervisor.kill()
        await within(started.supervisor.close())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_BACKOFF_S", (0.01,))


async def test_one_that_must_start_and_does_not() -> None:
    async with family() as started:
        started.start("it", FAILS, must_start=True)
        assert await within(started.supervisor.failure()) == "it ended with exit code 2 before it was ready"


async def test_one_that_comes_later_may_fail() -> None:
    async with family() as started:
        first = await started.up("first", READY)
        later = started.start("later", FAILS)
        await eventually(lambda: later.restarts >= 2)
        assert started.shown[0] == "[later] ended with exit code 2 before it was ready: starting it again in 0.01 s"
        assert started.children == [first, later]
        failure = asyncio.create_task(started.supervisor.failure())
        await asyncio.wait({failure}, timeout=0)
        assert not failure.done()
        failure.cancel()


async def test_a_command_that_cannot_be_run() -> None:
    async with family() as started:
        later = started.supervisor.start("later", ["/no/such/program"], must_start=False)
        await eventually(lambda: later.restarts >= 2)
        assert "[later] could not be run" in started.shown[0]
        started.supervisor.start("first", ["/no/such/program"], must_start=True)
        assert "No such file" in await within(started.supervisor.failure())


async def test_end_lets_it_finish(tmp_path: Path) -> None:
    async with family() as started:
        other = await started.up("other", READY)
        child = await started.up("it", FINISHES, str(tmp_path / "go"))
        started.supervisor.end(child)
        assert child.state is State.DRAINING
        await eventually(lambda: "[it] told 1" in started.shown)
        assert started.children == [other, child]
        (tmp_path / "go").touch()
        await eventually(lambda: started.children == [other])
        assert child.state.value == "stopped"
        assert other.state is State.UP
        assert started.shown[-1] == "[it] has ended"


async def test_a_second_signal_would_cut_its_requests_off(tmp_path: Path) -> None:
    async with family() as started:
        child = await started.up("it", FINISHES, str(tmp_path / "go"))
        started.supervisor.end(child)
        started.supervisor.end(child)
        await eventually(lambda: "[it] told 1" in started.shown)
        closing = asyncio.create_task(started.supervisor.close())
        await asyncio.wait({closing}, timeout=0.05)  # in which it would have been told again
        (tmp_path / "go").touch()
        await within(closing)
        assert started.shown == ["[it] told 1", "[it] has ended"]


async def test_one_that_does_not_end_is_killed() -> None:
    async with family(end_timeout_s=0.05) as started:
        child = await started.up("it", DEAF)
        started.supervisor.end(child)
        await eventually(lambda: started.children == [])
        assert started.shown == ["[it] has not ended within 0.05 s: it is killed", "[it] has ended"]


async def test_close_ends_all_and_nothing_starts_after_it() -> None:
    async with family() as started:
        children = [await started.up("a", READY), await started.up("b", READY)]
        await within(started.supervisor.close())
        assert [child.state for child in children] == [State.STOPPED] * 2
        assert started.children == children  # a status line still shows them
        with pytest.raises(UnavailableError, match="being stopped"):
            started.start("c", READY)


async def test_settled() -> None:
    async with family() as started:
        await within(started.supervisor.settled(await started.up("up", READY)))
        hanging = started.start("hanging", "import time; time.sleep(60)")
        waiting = asyncio.create_task(started.supervisor.settled(hanging))
        await asyncio.wait({waiting}, timeout=0.01)
        assert not waiting.done()
        started.supervisor.end(hanging)
        await within(waiting)


async def test_settled_is_who_has_gone() -> None:
    async with family() as started:
        gone = await started.up("gone", READY)
        started.supervisor.end(gone)
        await eventually(lambda: started.children == [])
        await within(started.supervisor.settled(gone))


async def test_restart_lets_it_finish(tmp_path: Path) -> None:
    """And until it has, it is not up, and is told nothing twice."""
    async with family() as started:
        child = await started.up("it", FINISHES, str(tmp_path / "go"))
        restarting = asyncio.create_task(started.supervisor.restart(child))
        await eventually(lambda: "[it] told 1" in started.shown)
        assert child.state is State.DRAINING
        started.supervisor.end(child)
        await asyncio.wait({restarting}, timeout=0.05)  # in which it would have been told again
        (tmp_path / "go").touch()
        await within(restarting)
        await eventually(lambda: started.children == [])
        assert started.shown == ["[it] told 1", "[it] has ended"]


async def test_restart_of_one_that_does_not_end() -> None:
    async with family(end_timeout_s=0.05) as started:
        child = await started.up("it", DEAF)
        await within(started.supervisor.restart(child))
        await eventually(lambda: child.restarts == 1 and child.state is State.UP)
        assert started.shown == [
            "[it] has not ended within 0.05 s: it is killed",
            "[it] ended with signal SIGKILL: starting it again in 0.01 s",
        ]
