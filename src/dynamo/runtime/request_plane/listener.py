"""The serving side of an instance, whatever its transport: its connections, and how they end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from dynamo.errors import DrainingError, DynamoError
from dynamo.runtime.credentials import NO_CREDENTIALS, Credentials
from dynamo.runtime.request_plane import limits
from dynamo.runtime.request_plane.base import Address
from dynamo.runtime.request_plane.call import Dispatcher, ServedCall
from dynamo.runtime.request_plane.callee import CalleeConnection
from dynamo.runtime.request_plane.handshake import callee_handshake

logger = logging.getLogger(__name__)

_HANG_UP_S = 1.0  # how long callers without calls may take to hang up
_CLEANUP_S = 5.0  # how long handlers that were cancelled may take over their `finally`


class ConnectionListener:
    """Owns every connection that callers have opened to one instance."""

    def __init__(self, dispatch: Dispatcher, secret: str, credentials: Credentials = NO_CREDENTIALS) -> None:
        """`secret` is the instance's own."""
        self._dispatch = dispatch
        self._secret = secret
        self._credentials = credentials
        self._connections: set[CalleeConnection] = set()
        self._stopped = False
        self._crowded = False
        self._stop_accepting: list[Callable[[], Awaitable[None]]] = []
        self.address = Address(secret=secret)

    def accept(self) -> CalleeConnection:
        """A new connection; the transport's protocol factory."""
        return CalleeConnection(self._dispatch, callee_handshake(self._secret, self._credentials), self._admit)

    def on_stop(self, stop_accepting: Callable[[], Awaitable[None]]) -> None:
        self._stop_accepting.append(stop_accepting)

    async def drain(self, timeout_s: float) -> None:
        await self._stop()
        for connection in self._connections:
            connection.go_away()
        await self._finish_calls(timeout_s)
        await self._cancel_calls("the worker shut down before the reply was complete")

    async def finish_calls(self, endpoints: Collection[str], timeout_s: float) -> None:
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while calls := _tasks(self._living_calls(endpoints)):
            if (remaining_s := deadline_s - asyncio.get_running_loop().time()) <= 0:
                break
            await asyncio.wait(calls, timeout=remaining_s)
        await self._cancel_calls("the worker has left this endpoint before the reply was complete", endpoints)

    def end_calls(self, endpoint: str, error: DynamoError) -> None:
        for call in self._calls():
            if call.endpoint == endpoint:
                call.kill(error)

    async def close(self) -> None:
        await self._stop()
        await asyncio.gather(*(connection.close() for connection in tuple(self._connections)))

    async def _finish_calls(self, timeout_s: float) -> None:
        """Waits for calls that somebody waits for, and then for callers to hang up."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        while (remaining_s := deadline_s - loop.time()) > 0 and self._connections:
            if calls := _tasks(self._living_calls()):
                await asyncio.wait(calls, timeout=remaining_s)
            else:
                await asyncio.wait([c.closed for c in self._connections], timeout=min(remaining_s, _HANG_UP_S))
                if not self._living_calls():  # else one had been sent before its caller heard
                    return

    async def _cancel_calls(self, reason: str, endpoints: Collection[str] | None = None) -> None:
        """Of what was killed before, the end may be near too."""
        if living := self._living_calls(endpoints):
            logger.warning("cancelling %d requests that did not finish in time", len(living))
        for call in living:
            call.kill(DrainingError(reason))
        if calls := _tasks(self._calls(endpoints)):
            await asyncio.wait(calls, timeout=_CLEANUP_S)

    def _admit(self, connection: CalleeConnection) -> bool:
        """Takes a connection that is made: not all get so far, as over TLS each has to show a certificate before."""
        crowded = len(self._connections) >= limits.CONNECTIONS_MAX
        if crowded != self._crowded:
            self._crowded = crowded
            if crowded:
                logger.warning("connections are refused: there are %d", len(self._connections))
        if crowded or self._stopped:  # it was on its way already
            return False
        self._connections.add(connection)
        connection.closed.add_done_callback(lambda _: self._connections.discard(connection))
        return True

    def _calls(self, endpoints: Collection[str] | None = None) -> list[ServedCall]:
        """Those under way, and those whose handlers are cleaning up; to `endpoints`, or to all."""
        calls = (call for connection in self._connections for call in connection.calls())
        return [call for call in calls if endpoints is None or call.endpoint in endpoints]

    def _living_calls(self, endpoints: Collection[str] | None = None) -> list[ServedCall]:
        return [call for call in self._calls(endpoints) if not call.killed]

    async def _stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            for stop_accepting in self._stop_accepting:
                await stop_accepting()


def _tasks(calls: list[ServedCall]) -> list[asyncio.Task[None]]:
    return [call.task for call in calls if call.task is not None]
