"""A TCP proxy in front of a worker: the network, as bad as a test wants it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

_PIECE_BYTES = 64 << 10


class Proxy:
    """Passes bytes on to a port of this host, later or not at all."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._connections: set[asyncio.Task[Any]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.refusing = False  # new connections
        self.delay_s = 0.0  # of each piece

    def cut(self) -> None:
        """Resets all connections that there are."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._writers.add(writer)
        try:
            if self.refusing:
                return
            with contextlib.suppress(OSError):
                there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
                self._writers.add(back)
                try:
                    await self._both_ways((reader, back), (there, writer))
                finally:
                    self._writers.discard(back)
                    back.transport.abort()
        finally:
            self._connections.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def close(self) -> None:
        self.refusing = True
        self.cut()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _both_ways(self, *ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        pipes = [asyncio.create_task(self._pass_on(*way)) for way in ways]
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pipe in pipes:
                pipe.cancel()
            await asyncio.wait(pipes)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(piece)
                await writer.drain()


@asynccontextmanager
async def proxy(target_port: int) -> AsyncIterator[Proxy]:
    """One that listens on `port` within the block."""
    made = Proxy(target_port)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.close()
