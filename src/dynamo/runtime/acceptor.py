"""Accepting connections.

Not asyncio.Server: when that is closed, a connection that it has just accepted is neither served nor closed. Besides,
uvloop's takes one connection in a turn of the event loop, and the turns of a busy one are long.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

logger = logging.getLogger(__name__)

ARRIVALS_PER_TURN_MAX = 64  # there is other work to do

_HANDSHAKE_S = 10.0  # of TLS
_HANDSHAKES_MAX = 1024  # at a time: a client costs as much as a connection does before it has shown anything
_RETRY_S = 0.5  # after a failure that time may mend: most likely, there are no descriptors left


class Acceptor:
    """Makes a protocol of each connection that arrives at a listening, non-blocking socket, which it owns."""

    def __init__(
        self,
        sock: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """With `tls`, a connection has its protocol once the handshake is done."""
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._make_protocol = make_protocol
        self._connecting: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._start()

    async def stop(self) -> None:
        """Refuses connections from here on; idempotent."""
        if self._retry is not None:
            self._retry.cancel()
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()
        if self._connecting and self._tls is not None:
            for task in self._connecting:  # a handshake waits for the client
                task.cancel()
        if self._connecting:
            await asyncio.wait(self._connecting)

    def _start(self) -> None:
        self._loop.add_reader(self._sock, self._on_arrival)

    def _on_arrival(self) -> None:
        for _ in range(ARRIVALS_PER_TURN_MAX):
            try:
                connection, _address = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return  # that was all, or it has gone again
            except OSError as error:
                logger.error("cannot accept a connection: %s", error)
                self._loop.remove_reader(self._sock)
                self._retry = self._loop.call_later(_RETRY_S, self._start)
                return
            if self._tls is not None and len(self._connecting) >= _HANDSHAKES_MAX:
                connection.close()
            else:
                self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        task = asyncio.create_task(self._connect(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: socket.socket) -> None:
        handshake_s = None if self._tls is None else _HANDSHAKE_S
        try:
            await self._loop.connect_accepted_socket(
                self._make_protocol, connection, ssl=self._tls, ssl_handshake_timeout=handshake_s
            )
        except OSError as error:
            # Clients of another protocol, and those that do not trust the certificate, are no news.
            level = logging.WARNING if self._tls is None else logging.DEBUG
            logger.log(level, "a connection broke before it was made: %s", error)
            connection.close()
