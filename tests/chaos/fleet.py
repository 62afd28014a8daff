"""The fleet that is disturbed: frontends, and prefill and decode workers, each of these behind a proxy."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.discovery.etcd_config import EtcdConfig
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.process import READY
from dynamo.testing import Program
from dynamo.testing.deployment import START_S, Deployment, deployment
from dynamo.testing.etcd_server import EtcdServer
from dynamo.testing.free_port import kept_ports
from dynamo.testing.nats_server import NatsServer, nats_server
from tests.e2e.raw_http import get
from tests.e2e.served import until_served

from .proxy import Proxy, proxy
from .questions import MODEL

_POLL_S = 0.05
END_S = 60.0  # for a process that was told to end, whose requests may go on for half of that
MOCKER = ("--block-size", "16", "--speedup-ratio", "2", "--max-model-len", "8192")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How many of each."""

    frontends: int = 2
    prefill: int = 2
    decode: int = 3
    brokers: bool = False  # etcd and NATS, in place of a directory and of connections from each router to each worker


class Place:
    """A process that is started again when it has ended."""

    def __init__(self, name: str, start: Callable[[], Awaitable[Program]]) -> None:
        self.name = name
        self._start = start
        self._program: Program | None = None
        self.disturbed = False  # right now
        self.disturbances = 0  # that have begun

    @property
    def program(self) -> Program:
        assert self._program is not None
        return self._program

    async def start(self) -> None:
        self._program = await self._start()

    async def kill(self) -> None:
        self.program.signal(signal.SIGKILL)
        await self.program.exit_code()
        await self.start()

    async def drain(self) -> int:
        """Its exit code."""
        self.program.signal(signal.SIGTERM)
        code = await self.program.exit_code(END_S)
        await self.start()
        return code

    async def freeze(self, seconds: float) -> None:
        self.program.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.program.signal(signal.SIGCONT)


class Frontend(Place):
    """One that clients ask."""

    def __init__(self, name: str, url: str, start: Callable[[], Awaitable[Program]]) -> None:
        super().__init__(name, start)
        self.metrics_url = self.url = url

    async def start(self) -> None:
        """Returns when it serves: who balances load asks /health before."""
        await super().start()
        async with asyncio.timeout(START_S):
            while (await get(self.url, "/health")).status != 200:  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(_POLL_S)


class Worker(Place):
    """One that others reach through a proxy."""

    def __init__(
        self, name: str, way: Proxy, metrics_url: str, start: Callable[[], Awaitable[Program]], *, decodes: bool
    ) -> None:
        super().__init__(name, start)
        self.way = way
        self.metrics_url = metrics_url
        self.decodes = decodes

    async def cut(self, seconds: float) -> None:
        self.way.refusing = True
        self.way.cut()
        try:
            await asyncio.sleep(seconds)
        finally:
            self.way.refusing = False

    async def delay(self, seconds: float, delay_s: float) -> None:
        self.way.delay_s = delay_s
        try:
            await asyncio.sleep(seconds)
        finally:
            self.way.delay_s = 0.0


class Fleet:
    """Made by `fleet`."""

    def __init__(self, own: Deployment, model: Path, stack: AsyncExitStack) -> None:
        self.deployment = own
        self.frontends: list[Frontend] = []
        self.workers: list[Worker] = []
        self._etcd: EtcdServer | None = None
        self._nats: NatsServer | None = None
        self._restarting = asyncio.Lock()
        self._model = model
        self._stack = stack

    @property
    def places(self) -> list[Frontend | Worker]:
        return [*self.frontends, *self.workers]

    @property
    def environ(self) -> dict[str, str]:
        """By which processes find the brokers, if there are any."""
        if self._etcd is None or self._nats is None:
            return {}
        return {
            "DYN_DISCOVERY_BACKEND": "etcd",
            "ETCD_ENDPOINTS": self._etcd.url,
            "DYN_EVENT_PLANE": "nats",
            "NATS_SERVER": self._nats.url,
        }

    async def start(self, size: Size) -> None:
        if size.brokers:
            self._etcd = self._stack.enter_context(EtcdServer(self.deployment.directory))
            self._nats = await self._stack.enter_async_context(nats_server(self.deployment.directory))
        self.frontends = [self._frontend(i) for i in range(size.frontends)]
        self.workers = [await self._worker("prefill", i) for i in range(size.prefill)]
        self.workers += [await self._worker("decode", i) for i in range(size.decode)]
        await asyncio.gather(*(place.start() for place in self.places))
        await asyncio.gather(*(until_served(frontend.url, len(self.workers)) for frontend in self.frontends))

    def runtime(self) -> DistributedRuntime:
        """Takes part in the fleet from within the test; to be closed by it."""
        if self._etcd is None:
            return self.deployment.runtime()
        config = RuntimeConfig(discovery_backend="etcd", etcd=EtcdConfig(endpoints=self._etcd.url))
        return DistributedRuntime(config=config)

    async def wipe_discovery(self) -> None:
        await asyncio.to_thread(shutil.rmtree, self.deployment.discovery, ignore_errors=True)

    async def restart_etcd(self, seconds: float) -> None:
        """It is away for so long."""
        assert self._etcd is not None
        async with self._restarting:
            self._etcd.stop()
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self._etcd.start)

    async def restart_nats(self, seconds: float) -> None:
        assert self._nats is not None
        async with self._restarting:
            await self._nats.kill()
            await asyncio.sleep(seconds)
            await self._nats.start()

    def _frontend(self, number: int) -> Frontend:
        port = kept_ports()
        # Among so many faults a request may well be lost with more than the three workers that it has by default, after
        # which it is given up: it may be what kills them.
        flags = ["--http-port", str(port), "--router-mode", "kv", "--no-access-log", "--migration-limit", "10"]

        async def start() -> Program:
            return await self._ready("dynamo.frontend", flags)

        return Frontend(f"frontend-{number}", f"http://127.0.0.1:{port}", start)

    async def _worker(self, role: str, number: int) -> Worker:
        port, system_port = kept_ports(), kept_ports()
        way = await self._stack.enter_async_context(proxy(port))
        flags = ["--model-path", str(self._model), "--model-name", MODEL, "--disaggregation-mode", role, *MOCKER]
        flags += ["--rpc-port", str(port), "--rpc-advertise", f"127.0.0.1:{way.port}"]
        flags += ["--system-port", str(system_port)]

        async def start() -> Program:
            return await self._ready("dynamo.mocker", flags)

        url = f"http://127.0.0.1:{system_port}"
        return Worker(f"{role}-{number}", way, url, start, decodes=role == "decode")

    async def _ready(self, module: str, flags: Sequence[str]) -> Program:
        started = await self.deployment.python("-m", module, *flags, environ=self.environ)
        await started.line(READY, START_S)
        return started


@asynccontextmanager
async def fleet(model: Path, size: Size) -> AsyncIterator[Fleet]:
    """One that is ready; it ends with the block."""
    async with deployment() as own, AsyncExitStack() as stack:
        made = Fleet(own, model, stack)
        await made.start(size)
        yield made
