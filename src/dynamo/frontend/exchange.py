"""One request and its answer on a client's connection: what ASGI has no message for."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from starlette.types import Scope
from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from dynamo.runtime.context import Context

Header = tuple[bytes, bytes]

_EXTENSION = "dynamo"
_STREAM_END = b"0\r\n\r\n"


class Exchange(Protocol):
    """Streams an answer without waiting for each piece, and tells the request's context how its reader is doing."""

    def follow(self, context: Context) -> None:
        """From now on kills `context` when the client leaves, and pauses it while the client reads too slowly."""
        ...

    def start(self, headers: Sequence[Header]) -> None:
        """Begins a streamed answer, with status 200."""
        ...

    def write(self, data: bytes) -> None:
        """The next piece of it; what is written in one turn of the event loop leaves together."""
        ...

    def end(self) -> None: ...


def attach(scope: HTTPScope, exchange: Exchange) -> None:
    scope["extensions"] = {_EXTENSION: {"exchange": exchange}}


def take_exchange(scope: Scope) -> Exchange:
    """What the server has attached to the request. It knows the scope: left there, each request would be a cycle."""
    exchange: Exchange = scope["extensions"].pop(_EXTENSION)["exchange"]
    return exchange


class TurnWrites:
    """Everybody's writes of one turn of the event loop, made one after the other at its end.

    The interpreter and the kernel's network code then run in long stretches instead of by turns with each token, and
    the reader at the other end is woken less often.
    """

    def __init__(self) -> None:
        self._waiting: list[HttpExchange] = []

    def add(self, exchange: "HttpExchange") -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(exchange)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for exchange in waiting:
            exchange.flush()


class HttpExchange:
    """The Exchange of uvicorn's HTTP/1.1 protocol."""

    __slots__ = ("_chunked", "_context", "_cycle", "_left", "_pending", "_transport", "_writes")

    def __init__(self, cycle: RequestResponseCycle, writes: TurnWrites) -> None:
        self._cycle = cycle
        self._chunked = cycle.scope["http_version"] != "1.0"  # before that, the connection's end is the answer's
        self._transport = cycle.transport
        self._writes = writes
        self._pending: list[bytes] = []
        self._context: Context | None = None
        self._left = False

    def follow(self, context: Context) -> None:
        self._context = context
        if self._left:
            context.kill()
        elif self._cycle.flow.write_paused:
            context.pause()

    def start(self, headers: Sequence[Header]) -> None:
        cycle = self._cycle
        cycle.response_started = True
        lines = [b"%s: %s\r\n" % header for header in (*cycle.default_headers, *headers)]
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        if self._chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        self._post(b"".join([STATUS_LINE[200], *lines, b"\r\n"]))

    def write(self, data: bytes) -> None:
        self._post(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end(self) -> None:
        if self._left:  # no other request may begin on this connection either
            return
        if self._chunked:
            self._post(_STREAM_END)
        self.flush()
        cycle = self._cycle
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self._transport.close()
        cycle.on_response()

    @property
    def started(self) -> bool:
        return self._cycle.response_started

    @property
    def under_way(self) -> bool:
        """Whether the whole request is here and the whole answer is not."""
        return not self._cycle.more_body and not self._cycle.response_complete

    @property
    def complete(self) -> bool:
        return self._cycle.response_complete

    def abandon(self) -> None:
        """The client has gone, or is to be sent away: ends the work on its request."""
        if not self._cycle.response_complete:
            self._left = self._cycle.disconnected = True
            self._cycle.message_event.set()
            if self._context is not None:
                self._context.kill()

    def pause(self) -> None:
        if self._context is not None:
            self._context.pause()

    def resume(self) -> None:
        if self._context is not None:
            self._context.resume()

    def _post(self, data: bytes) -> None:
        if not self._pending:
            self._writes.add(self)
        self._pending.append(data)

    def flush(self) -> None:
        """Sends what has been written."""
        if self._pending:
            data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
            self._pending.clear()
            if not self._left:
                self._transport.write(data)
