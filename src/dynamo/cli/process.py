"""One supervised child process."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from dynamo.cli.output_lines import OutputLines
from dynamo.runtime.parent import PARENT_VARIABLE
from dynamo.runtime.process import READY

_READ_BYTES = 64 << 10
_BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_STABLE_AFTER_S = 60.0


class State(StrEnum):
    """Where a child is in its life."""

    STARTING = "starting"
    UP = "up"
    WAITING = "restarting"
    DRAINING = "draining"
    STOPPED = "stopped"


# Gets each line of output: the process's name, the text, and whether it is complete, or a progress bar's present state.
Show = Callable[[str, str, bool], None]


class StartError(Exception):
    """A child ended before it ever served: starting it again would end the same way."""


class Child:
    """Keeps one command running: after a crash it is started again, each time a little later."""

    def __init__(
        self, name: str, command: Sequence[str], environ: Mapping[str, str], show: Show, *, must_start: bool = True
    ) -> None:
        """`must_start`: whether a failure before it has ever been up is final; if not, it is taken for a crash."""
        self.name = name
        self.command = list(command)  # what the next start runs
        self.state = State.STARTING
        self.down_since_s = time.monotonic()  # since when it has not been up; without meaning while it is
        self.restarts = 0
        self.failure = ""  # how it has ended before it was ready, the last time that it did
        self.ready = ""  # what it said when it was last ready, such as a URL
        self.was_up = asyncio.Event()
        self._environ = {**environ, PARENT_VARIABLE: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        self._show = show
        self._must_start = must_start
        self._process: asyncio.subprocess.Process | None = None
        self._told = False  # whether the process was asked to end
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Returns after stop(); raises StartError when it must start and fails before it has ever been up."""
        crashes = 0  # one soon after the other
        while not self._stopping.is_set():
            started_s = asyncio.get_running_loop().time()
            end = await self._run_once()
            if self._stopping.is_set():
                break
            if self.state is State.STARTING:
                self.failure = end = f"{end} before it was ready"
                if self._must_start and not self.was_up.is_set():
                    raise StartError(f"{self.name} {end}")
            if self.state is State.UP:
                self.down_since_s = time.monotonic()
            if asyncio.get_running_loop().time() - started_s >= _STABLE_AFTER_S:
                crashes = 0
            delay_s = _BACKOFF_S[min(crashes, len(_BACKOFF_S) - 1)]
            crashes += 1
            self.state = State.WAITING
            self._show(self.name, f"{end}: starting it again in {delay_s:g} s", True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)
            self.restarts += 1
        self.state = State.STOPPED

    @property
    def stopping(self) -> bool:
        """Whether it was told to end."""
        return self._stopping.is_set()

    @property
    def pid(self) -> int | None:
        """None while there is no process."""
        return None if self._process is None else self._process.pid

    def restart(self) -> None:
        """Asks the command to end, by SIGTERM, after which it is started again: as `command` says by then."""
        if self.state is State.UP:
            self.state = State.DRAINING
            self.down_since_s = time.monotonic()
        self._terminate()

    def stop(self) -> None:
        """Asks the command to end, by SIGTERM, for good; idempotent."""
        if not self.stopping:
            self._stopping.set()
            self.state = State.DRAINING
            self._terminate()

    async def process_ended(self) -> None:
        """Returns when the process that there is now has ended."""
        if self._process is not None:
            await self._process.wait()

    def kill(self) -> None:
        """Ends the command and all that it has started at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _terminate(self) -> None:
        """Tells each process once: a second signal would cut its requests off."""
        if self._process is not None and not self._told:
            self._told = True
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    async def _run_once(self) -> str:
        """How it has ended."""
        self.state = State.STARTING
        # A session of its own: Ctrl-C in the terminal reaches the supervisor only, which then stops all in order.
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=self._environ,
                start_new_session=True,
            )
        except OSError as error:  # the host may have no room for one more
            return f"could not be run ({error})"
        self._told = False
        if self.stopping:  # meanwhile
            self._terminate()
        try:
            assert process.stdout is not None
            await self._read(process.stdout)
            code = await process.wait()
            self.kill()  # what it may have left behind
        finally:
            self._process = None  # its pid may be another's soon
        return f"ended with {_describe(code)}"

    async def _read(self, output: asyncio.StreamReader) -> None:
        lines = OutputLines()
        while data := await output.read(_READ_BYTES):
            for line, complete in lines.feed(data):
                self._on_line(line, complete)
        for line, complete in lines.end():
            self._on_line(line, complete)

    def _on_line(self, line: str, complete: bool) -> None:
        if complete and line.startswith(READY):
            if not self.stopping:
                self.state = State.UP
            self.ready = line.removeprefix(READY)
            self.was_up.set()
            self.failure = ""
        elif line.strip():
            self._show(self.name, line, complete)


def _describe(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
