"""uvicorn's HTTP protocol, with what a server for strangers needs beside it."""

import asyncio
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from dynamo.errors import DynamoError, InvalidRequestError, OverloadedError, RequestTooLargeError
from dynamo.frontend.errors import encode_error, error_headers
from dynamo.frontend.exchange import HttpExchange, TurnWrites, attach

HEAD_BYTES_MAX = 64 << 10  # of a request's first line and headers together
HEADERS_MAX = 256  # of a request
_LINGER_S = 1.0  # closing at once, with input unread, could take the answer away from the client
_PIPELINED_MAX = 16  # requests that may wait on one connection
_REFUSALS_MAX = 128  # connections over the limit that are told so at a time: those beyond are just closed
_UPGRADE_HEADERS = frozenset({b"upgrade", b"http2-settings", b"connection"})


class HttpProtocol(HttpToolsProtocol):
    """Differs from uvicorn's in six things.

    - What one connection makes us remember is bounded, and so is the number of connections.
    - Broken HTTP is answered by an error of OpenAI's shape.
    - An offer to speak another protocol, as Java's client makes with each request, is passed over. (The parser takes
      it for the end of the request and loses the body.)
    - When a connection is lost, the request that is being answered gets to know it, and at once. (Where requests are
      pipelined, uvicorn tells the latest one only, if it notices at all.)
    - A client that sends no more of its request is not waited for, nor one that takes no more of its answer. The head
      of a request has to be here in that time altogether: it could come byte by byte for days otherwise.
    - Applications are given an Exchange with each request.
    """

    client_timeout_s: float
    connections_max: int
    writes: TurnWrites  # of all connections of a server

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._too_many_headers = False
        self._unparsed_bytes = 0  # what the parser has taken without giving anything
        self._answering: HttpExchange | None = None
        self._refused = False
        self._receiving = True  # a request, or waiting for the first
        self._in_head = True  # of it
        self._silence: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        surplus = len(self.connections) - self.connections_max
        if surplus > _REFUSALS_MAX:
            transport.abort()
        elif surplus > 0:
            self._refuse(503, OverloadedError("this server has as many connections as it can take"))
        else:
            self._watch_silence()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        in_head = self._in_head
        self._parse(data)
        if not (in_head and self._in_head and self._silence is not None):
            self._watch_silence()

    def _parse(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._unparsed_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._pass_over(data[offer.args[0] :])
        except httptools.HttpParserError:
            if self._too_many_headers:
                self._refuse(431, RequestTooLargeError(f"there are more than {HEADERS_MAX} headers"))
            elif self._head_bytes <= HEAD_BYTES_MAX:  # else it was stopped by _grow_head()
                self._refuse(400, InvalidRequestError("this is not a valid HTTP request"))
        if max(self._unparsed_bytes, self._head_bytes) > HEAD_BYTES_MAX:
            self._refuse(431, RequestTooLargeError(f"the headers are over the limit of {HEAD_BYTES_MAX} bytes"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._receiving = self._in_head = True
        self._head_bytes = 0
        self._forget_silence()  # that of the message before

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._grow_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._grow_head(len(name) + len(value))
        if len(self.headers) > HEADERS_MAX:
            self._too_many_headers = True
            raise ValueError("too many headers")  # stops the parser

    def on_headers_complete(self) -> None:
        self._unparsed_bytes = 0
        if self.parser.should_upgrade():
            return
        self._in_head = False
        super().on_headers_complete()
        if len(self.pipeline) > _PIPELINED_MAX:
            raise ValueError("too many requests wait for the one that is being answered")  # stops the parser
        self.flow.resume_reading()  # uvicorn reads no further while requests wait, and would not see the client leave

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed_bytes = 0
        if not self.parser.should_upgrade():
            self._receiving = False
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._receiving = False
        self._watch_silence()
        self._forget_reader()
        self._abandon()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()
        if self._answering is not None:
            self._answering.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_reader()
        if self._answering is not None:
            self._answering.resume()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = HttpExchange(cycle, self.writes)
        attach(cycle.scope, self._answering)
        super()._start_asgi_task(cycle, app)

    def _grow_head(self, size_bytes: int) -> None:
        self._unparsed_bytes = 0
        self._head_bytes += size_bytes
        if self._head_bytes > HEAD_BYTES_MAX:
            raise ValueError("the head is too large")  # stops the parser

    def _pass_over(self, rest: bytes) -> None:
        """Feeds the parser the same request without the offer."""
        kept = [(name, value) for name, value in self.headers if name not in _UPGRADE_HEADERS]
        if len(kept) == len(self.headers):  # CONNECT: the parser takes that for an offer too
            self._refuse(400, InvalidRequestError("this server is no proxy"))
            return
        if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
            kept.append((b"connection", b"close"))
        lines = [b"%s: %s\r\n" % header for header in kept]
        version = self.parser.get_http_version().encode()
        request_line = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version)
        self.parser = httptools.HttpRequestParser(self)  # the other one has ended, if the request was its last one
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._parse(b"".join([request_line, *lines, b"\r\n", rest]))

    def _watch_silence(self) -> None:
        """Starts to wait anew, if there is something to wait for."""
        self._forget_silence()
        if self._receiving and not self._refused:
            self._silence = self.loop.call_later(self.client_timeout_s, self._on_silence)

    def _forget_silence(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _on_silence(self) -> None:
        if self.flow.read_paused or (self._answering is not None and self._answering.under_way):
            self._watch_silence()  # it is we who do not read, or an earlier request is being answered
        elif not self.transport.is_closing():
            self._refuse(408, InvalidRequestError(f"nothing of the request came for {self.client_timeout_s:g} s"))

    def _watch_reader(self) -> None:
        """While writing is paused, what waits for the client can only become less."""
        unread_bytes = self.transport.get_write_buffer_size()
        self._stall = self.loop.call_later(self.client_timeout_s, self._on_stall, unread_bytes)

    def _forget_reader(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _on_stall(self, unread_bytes: int) -> None:
        if self.transport.get_write_buffer_size() < unread_bytes:
            self._watch_reader()
        else:
            self.transport.abort()

    def _refuse(self, status: int, error: DynamoError) -> None:
        if self._refused:
            return
        self._refused = True
        answering = self._answering
        if answering is not None and answering.started and not answering.complete:
            self.transport.close()  # no other answer can follow the one that is under way
            return
        self._abandon()
        body = encode_error(error)
        lines = [b"%s: %s\r\n" % (name.encode(), value.encode()) for name, value in error_headers(error).items()]
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(b"".join([STATUS_LINE[status], *lines, head, body]))
        if self.transport.can_write_eof():  # not in TLS
            self.transport.write_eof()
        asyncio.get_running_loop().call_later(_LINGER_S, self.transport.close)

    def _abandon(self) -> None:
        """Ends the work on the request that is being answered."""
        if self._answering is not None:
            self._answering.abandon()


def http_protocol(*, client_timeout_s: float, connections_max: int) -> type[HttpProtocol]:
    """The protocol for one server."""
    timeout_s, limit = client_timeout_s, connections_max

    class ServerProtocol(HttpProtocol):
        client_timeout_s = timeout_s
        connections_max = limit
        writes = TurnWrites()

    return ServerProtocol
