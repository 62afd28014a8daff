"""A frontend and workers of a test's own: real processes that find each other in a directory of their own."""

import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.process import READY
from dynamo.testing.program import Program, program

START_S = 60.0  # the longest start-up on a busy machine


class Deployment:
    """Starts processes; all that still run at the end are killed."""

    def __init__(self, directory: Path, stack: AsyncExitStack) -> None:
        self.directory = directory
        self.discovery = directory / "discovery"
        self._stack = stack

    @property
    def environ(self) -> dict[str, str]:
        """Keeps all that a process of the framework writes inside `directory`."""
        return {"DYN_FILE_KV": str(self.discovery), "DYN_CACHE_DIR": str(self.directory / "cache")}

    async def python(self, *arguments: str, environ: Mapping[str, str] | None = None) -> Program:
        """`python arguments`; returns at once."""
        return await self._stack.enter_async_context(program(arguments, self.environ | dict(environ or {})))

    async def frontend(self, *flags: str, environ: Mapping[str, str] | None = None) -> tuple[Program, str]:
        """A frontend that is ready, and its URL."""
        started = await self.python("-m", "dynamo.frontend", "--http-port", "0", *flags, environ=environ)
        return started, (await started.line(READY, START_S)).removeprefix(READY)

    async def mocker(self, model: Path, name: str, *flags: str) -> Program:
        """A simulated engine with a context of 32,768 tokens, ready."""
        arguments = ["--model-path", str(model), "--model-name", name, "--max-model-len", "32768", *flags]
        return await self._ready("dynamo.mocker", arguments)

    async def echo(self, model: Path, name: str, *flags: str) -> Program:
        """An echo engine, ready."""
        return await self._ready("dynamo.echo", ["--model-path", str(model), "--model-name", name, *flags])

    async def router(self, *flags: str) -> Program:
        """The KV router as a process of its own, ready: so a worker of `dynamo.backend.generate` is there."""
        return await self._ready("dynamo.router", [*flags])

    def runtime(self) -> DistributedRuntime:
        """Takes part in the deployment from within the test; to be closed by it."""
        return DistributedRuntime(config=RuntimeConfig(file_kv=str(self.discovery)))

    async def _ready(self, module: str, arguments: list[str]) -> Program:
        started = await self.python("-m", module, *arguments)
        await started.line(READY, START_S)
        return started


@asynccontextmanager
async def deployment() -> AsyncIterator[Deployment]:
    """An empty deployment."""
    with tempfile.TemporaryDirectory(prefix="dynamo-test-") as directory:
        async with AsyncExitStack() as stack:
            yield Deployment(Path(directory), stack)
