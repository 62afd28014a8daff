"""Other programs as part of a test: started, watched by what they print, ended whatever happens."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from dynamo.testing.waiting import DEADLINE_S, within


class Program:
    """A running process and all that it has printed, stdout and stderr together."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lines: list[str] = []
        self._all_read = False
        self._printed = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return "\n".join(self._lines)

    async def line(self, text: str, seconds: float = DEADLINE_S) -> str:
        """The first line that holds `text`; AssertionError with the whole output when none comes in time."""
        try:
            async with asyncio.timeout(seconds), self._printed:
                await self._printed.wait_for(lambda: self._find(text) is not None or self._all_read)
        except TimeoutError:
            pass
        found = self._find(text)
        assert found is not None, f"no {text!r} in the output:\n{self.output}"
        return found

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def exit_code(self, seconds: float = DEADLINE_S) -> int:
        """Waits for the end; negative when a signal was the cause, as in asyncio.subprocess."""
        code = await within(self._process.wait(), seconds)
        await within(self._reader, seconds)
        return code

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self.exit_code()

    def _find(self, text: str) -> str | None:
        return next((line for line in self._lines if text in line), None)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            async with self._printed:
                self._lines.append(line.decode(errors="replace").rstrip("\n"))
                self._printed.notify_all()
        async with self._printed:
            self._all_read = True
            self._printed.notify_all()


@asynccontextmanager
async def program(
    arguments: Sequence[str], env: Mapping[str, str] | None = None, *, prefix: Sequence[str] = ()
) -> AsyncIterator[Program]:
    """Runs Python with `arguments`, and `env` beside this process's environment; kills it at the end of the block.

    `prefix` is put before the command line: a command that becomes another one, as `ip netns exec x` does.
    """
    process = await asyncio.create_subprocess_exec(
        *prefix,
        sys.executable,
        *arguments,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(env or {}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    started = Program(process)
    try:
        yield started
    finally:
        await started.end()
