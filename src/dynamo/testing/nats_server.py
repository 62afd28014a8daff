"""A NATS server of a test's own: Debian's `nats-server`, on a port of this host that it keeps when it is restarted."""

import asyncio
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dynamo.testing.waiting import within

_POLL_INTERVAL_S = 0.02


def nats_server_path() -> str:
    """Where the program is; skips the test when it is not installed."""
    path = shutil.which("nats-server") or shutil.which("/usr/sbin/nats-server")
    if path is None:
        pytest.skip("nats-server is not installed: apt-get install nats-server")
    return path


class NatsServer:
    """One that is started, killed and stopped as a test wants it."""

    def __init__(self, log: Path, flags: Sequence[str] = ()) -> None:
        """`flags` beside address and port; what it prints goes to the file `log`."""
        self.port = _free_port()
        self._log = log
        self._flags = flags
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"nats://{self.address}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Returns when it takes connections."""
        own = ["--addr", "127.0.0.1", "--port", str(self.port), "--log", str(self._log)]
        self._process = await asyncio.create_subprocess_exec(nats_server_path(), *own, *self._flags)
        await within(self._until_open(self._process))

    async def kill(self) -> None:
        """As a crash does; start() may follow."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await within(process.wait())

    def pause(self) -> None:
        """It does nothing any more, but its connections stay."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def _until_open(self, process: asyncio.subprocess.Process) -> None:
        while True:
            assert process.returncode is None, f"nats-server has ended: {self._log.read_text()}"
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except ConnectionRefusedError:
                await asyncio.sleep(_POLL_INTERVAL_S)
            else:
                writer.close()
                await writer.wait_closed()
                return


@asynccontextmanager
async def nats_server(directory: Path, *flags: str) -> AsyncIterator[NatsServer]:
    """A server that runs, and is killed at the end of the block; its log is in `directory`."""
    server = NatsServer(directory / "nats-server.log", flags)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
