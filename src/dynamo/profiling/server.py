"""A server to be measured, as a process of its own: `dynamo serve`."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from dynamo.errors import UnavailableError
from dynamo.profiling.stream import Server
from dynamo.runtime.parent import PARENT_VARIABLE

_READY = re.compile(r"^ready: (?P<model>.+) on (?P<url>\S+) \(")
_START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 20.0
_LINES_SHOWN = 20  # of its output, when it does not start


@asynccontextmanager
async def served(model: str, engine: str, worker_flags: Sequence[str]) -> AsyncIterator[Server]:
    """One worker and a frontend; they end with the block. Raises UnavailableError when they do not start."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dynamo.cli.main", "serve", model, "--engine", engine, "--http-port", "0"),
        *("--http-host", "127.0.0.1", "--", *worker_flags),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {PARENT_VARIABLE: str(os.getpid()), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # Ctrl-C reaches this process, which ends that one
    )
    assert process.stdout is not None
    reading: asyncio.Task[None] | None = None
    try:
        server = await _ready(process.stdout)
        reading = asyncio.create_task(_drain(process.stdout), name="output of dynamo serve")
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        reading = reading or asyncio.create_task(_drain(process.stdout), name="output of dynamo serve")
        try:
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        await reading


async def _ready(output: asyncio.StreamReader) -> Server:
    last: deque[str] = deque(maxlen=_LINES_SHOWN)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_START_TIMEOUT_S):
            async for line in output:
                text = line.decode(errors="replace").rstrip()
                if (ready := _READY.match(text)) is not None:
                    return Server(url=ready["url"], model=ready["model"])
                last.append(text)
    raise UnavailableError("\n".join(["the server does not start:", *last]))


async def _drain(output: asyncio.StreamReader) -> None:
    """A process whose output nobody reads stands still."""
    while await output.read(1 << 16):
        pass
