"""Children that start, crash, are restarted, and end."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from dynamo.cli import process as process_module
from dynamo.cli.process import Child, StartError, State
from dynamo.testing import eventually, within

from .processes import children, is_running

READY = "import sys, time; print('hello'); print('ready: at last', file=sys.stderr, flush=True); time.sleep(60)"


class Recorder:
    """A child and what it has shown."""

    def __init__(self, code: str, **environ: str) -> None:
        self.shown: list[tuple[str, bool]] = []
        self.child = Child("it", [sys.executable, "-c", code], os.environ | environ, self._show)

    def has_shown(self, text: str) -> Callable[[], bool]:
        return lambda: any(text in line for line, _ in self.shown)

    def _show(self, name: str, text: str, complete: bool) -> None:
        assert name == "it"
        self.shown.append((text, complete))


@asynccontextmanager
async def running(recorder: Recorder) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(recorder.child.run())
    try:
        yield task
    finally:
        recorder.child.stop()
        recorder.child.kill()
        with suppress(StartError):
            await within(task)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_BACKOFF_S", (0.01, 0.02))


async def test_ready() -> None:
    recorder = Recorder(READY)
    async with running(recorder) as task:
        await within(recorder.child.was_up.wait())
        assert recorder.child.state == State.UP
        assert recorder.child.ready == "at last"
        assert recorder.shown == [("hello", True)]  # the ready line is no output
        recorder.child.stop()
        await within(task)
        assert recorder.child.state.value == "stopped"


async def test_failure_before_it_is_ready() -> None:
    recorder = Recorder("import sys; sys.exit('no such model')")
    async with running(recorder) as task:
        with pytest.raises(StartError, match="it ended with exit code 1 before it was ready"):
            await within(task)
    assert recorder.shown == [("no such model", True)]


async def test_crash_is_followed_by_a_restart(tmp_path: Path) -> None:
    crashes_twice = (
        "import os, signal, sys, time\n"
        f"runs = len(os.listdir({str(tmp_path)!r})); open({str(tmp_path)!r} + f'/{{runs}}', 'w')\n"
        "print('ready: ', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL) if runs < 2 else time.sleep(60)\n"
    )
    recorder = Recorder(crashes_twice)
    async with running(recorder):
        await eventually(lambda: recorder.child.restarts == 2 and recorder.child.state is State.UP)
    said = [text for text, _ in recorder.shown]
    assert said[:2] == [
        "ended with signal SIGKILL: starting it again in 0.01 s",
        "ended with signal SIGKILL: starting it again in 0.02 s",
    ]


async def test_stop_while_it_waits_to_be_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_BACKOFF_S", (3600.0,))
    recorder = Recorder("print('ready: ')")
    async with running(recorder) as task:
        await eventually(lambda: recorder.child.state is State.WAITING)
        recorder.child.stop()
        await within(task)


async def test_stop_before_it_has_started() -> None:
    recorder = Recorder(READY)
    task = asyncio.create_task(recorder.child.run())
    await asyncio.sleep(0)
    recorder.child.stop()
    await within(task)
    assert recorder.child.state is State.STOPPED


async def test_output_on_the_way_out_is_still_shown() -> None:
    says_goodbye = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('x' * 300_000), print('goodbye'), sys.exit()))\n"
        "print('ready: ', flush=True); time.sleep(60)\n"
    )
    recorder = Recorder(says_goodbye)
    async with running(recorder) as task:
        await within(recorder.child.was_up.wait())
        recorder.child.stop()
        await within(task)
    assert recorder.shown[-1] == ("goodbye", True)


async def test_what_it_has_started_ends_with_it() -> None:
    has_children = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "print('ready: ', os.getpid(), flush=True); time.sleep(60)\n"
    )
    recorder = Recorder(has_children)
    async with running(recorder) as task:
        await within(recorder.child.was_up.wait())
        (grandchild,) = children(int(recorder.child.ready))
        recorder.child.stop()
        await within(task)
        await eventually(lambda: not is_running(grandchild))


async def test_crash_does_not_leave_its_children_either() -> None:
    crashes = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "print('child', child.pid); print('ready: ', flush=True); os._exit(3)\n"
    )
    recorder = Recorder(crashes)
    async with running(recorder):
        await eventually(recorder.has_shown("ended with exit code 3"))
        grandchild = int(recorder.shown[0][0].removeprefix("child "))
        await eventually(lambda: not is_running(grandchild))


async def test_environment() -> None:
    recorder = Recorder("import os; print(os.environ['MINE'], os.environ['DYN_PARENT_PID'])", MINE="yes")
    async with running(recorder) as task:
        with pytest.raises(StartError):
            await within(task)
    assert recorder.shown == [(f"yes {os.getpid()}", True)]
