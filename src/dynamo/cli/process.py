"""One supervised child process."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from dynamo.runtime.parent import PARENT_VARIABLE

READY_PREFIX = "ready: "  # what each of our processes prints when it can serve
_READ_BYTES = 64 << 10
_LINE_CHARS_MAX = 8 << 10
_BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_STABLE_AFTER_S = 60.0


class State(StrEnum):
    """Where a child is in its life."""

    STARTING = "starting"
    UP = "up"
    WAITING = "restarting"
    STOPPED = "stopped"


class StartError(Exception):
    """A child ended before it ever served: starting it again would end the same way."""


class Child:
    """Keeps one command running: after a crash it is started again, each time a little later."""

    def __init__(
        self, name: str, command: Sequence[str], environ: Mapping[str, str], show: Callable[[str, str, bool], None]
    ) -> None:
        """`show(name, text, complete)` gets each line of output; not `complete`: a progress bar's present state."""
        self.name = name
        self.state = State.STARTING
        self.restarts = 0
        self.was_up = asyncio.Event()
        self._command = list(command)
        self._environ = {**environ, PARENT_VARIABLE: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        self._show = show
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Runs for ever; raises StartError when the command fails before it has ever been up."""
        failures = 0
        while True:
            started_s = asyncio.get_running_loop().time()
            code = await self._run_once()
            if not self.was_up.is_set():
                raise StartError(f"{self.name} ended with {_describe(code)} before it was ready")
            lasted_s = asyncio.get_running_loop().time() - started_s
            failures = 0 if lasted_s >= _STABLE_AFTER_S else failures + 1
            delay_s = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
            self.state = State.WAITING
            self._show(self.name, f"ended with {_describe(code)}: starting it again in {delay_s:g} s", True)
            await asyncio.sleep(delay_s)
            self.restarts += 1

    async def stop(self, timeout_s: float) -> None:
        """SIGTERM, and SIGKILL for what is left of its process group after `timeout_s`."""
        process = self._process
        if process is not None and process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), timeout_s)
            self.kill()
            await process.wait()
        self.state = State.STOPPED

    def kill(self) -> None:
        """Ends the child and its own children at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _run_once(self) -> int:
        self.state = State.STARTING
        # A session of its own: Ctrl-C in the terminal reaches the supervisor only, which then stops all in order.
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environ,
            start_new_session=True,
        )
        assert process.stdout is not None
        await self._read(process.stdout)
        code = await process.wait()
        self.kill()  # what it may have left behind
        return code

    async def _read(self, output: asyncio.StreamReader) -> None:
        pending = ""
        while data := await output.read(_READ_BYTES):
            pending += data.decode(errors="replace").replace("\r\n", "\n")
            *lines, pending = pending.split("\n")
            for line in lines:
                self._on_line(line.rpartition("\r")[2])
            if "\r" in pending:
                progress = pending.strip("\r").rpartition("\r")[2]
                self._show(self.name, progress, False)
                pending = progress
            pending = pending[-_LINE_CHARS_MAX:]
        if pending:
            self._on_line(pending)

    def _on_line(self, line: str) -> None:
        if line.startswith(READY_PREFIX):
            self.state = State.UP
            self.was_up.set()
        elif line.strip():
            self._show(self.name, line, True)


def _describe(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
