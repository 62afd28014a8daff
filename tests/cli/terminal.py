"""A program in a terminal of its own, and a person who types."""

import asyncio
import fcntl
import os
import pty
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

CTRL_C = b"\x03"
CTRL_D = b"\x04"
_READ_BYTES = 64 << 10


class Terminal:
    """What the program shows, escape sequences included, and its keyboard."""

    def __init__(self, process: asyncio.subprocess.Process, descriptor: int) -> None:
        self._process = process
        self._descriptor = descriptor
        self._shown = b""
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, self._on_readable)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def shown(self) -> str:
        return self._shown.decode(errors="replace").replace("\r\n", "\n")

    def type(self, keys: bytes) -> None:
        os.write(self._descriptor, keys)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def until(self, text: str, seconds: float = 30.0) -> str:
        """Everything shown so far, once `text` is there; AssertionError when it does not come."""
        try:
            async with asyncio.timeout(seconds):
                while text not in self.shown:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"no {text!r} in:\n{self.shown}") from None
        return self.shown

    def hang_up(self) -> None:
        """Closes the window."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1

    async def exit_code(self, seconds: float = 10.0) -> int:
        async with asyncio.timeout(seconds):
            return await self._process.wait()

    async def close(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._descriptor >= 0:
            self.hang_up()

    def _on_readable(self) -> None:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except OSError:  # the other end is closed
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self._shown += data
        self._changed.set()


@asynccontextmanager
async def terminal(*arguments: str, environ: Mapping[str, str], columns: int = 120) -> AsyncIterator[Terminal]:
    """Runs Python with `arguments` in a terminal that is `columns` wide; kills it at the end of the block."""
    descriptor, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env={**os.environ, "TERM": "xterm", **environ},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C becomes a signal
    )
    os.close(inner)
    shown = Terminal(process, descriptor)
    try:
        yield shown
    finally:
        await shown.close()
