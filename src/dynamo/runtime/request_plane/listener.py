"""The serving side of an instance, whatever its transport: its connections, and how they end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from dynamo.runtime.request_plane.base import Address
from dynamo.runtime.request_plane.call import Dispatcher
from dynamo.runtime.request_plane.connection import CalleeConnection

logger = logging.getLogger(__name__)


class ConnectionListener:
    """Owns every connection that callers have opened to one instance."""

    def __init__(self, dispatch: Dispatcher, secret: str) -> None:
        self._dispatch = dispatch
        self._secret = secret
        self._connections: set[CalleeConnection] = set()
        self._stop_accepting: list[Callable[[], Awaitable[None]]] = []
        self.address = Address(secret=secret)

    def accept(self) -> CalleeConnection:
        """A new connection; the transport's protocol factory."""
        connection = CalleeConnection(self._dispatch, self._secret)
        self._connections.add(connection)
        connection.closed.add_done_callback(lambda _: self._connections.discard(connection))
        return connection

    def on_close(self, stop_accepting: Callable[[], Awaitable[None]]) -> None:
        self._stop_accepting.append(stop_accepting)

    async def drain(self, timeout_s: float) -> None:
        for connection in self._connections:
            connection.go_away()
        tasks = [call.task for c in self._connections for call in c.calls() if call.task is not None]
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=timeout_s)
            if pending:
                logger.warning("cancelling %d requests that did not finish within %g s", len(pending), timeout_s)
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending, timeout=timeout_s)

    async def close(self) -> None:
        for stop_accepting in self._stop_accepting:
            await stop_accepting()
        await asyncio.gather(*(connection.close() for connection in tuple(self._connections)))
