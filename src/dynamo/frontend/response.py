"""One HTTP response: a JSON body by plain ASGI messages, or server-sent events."""

from starlette.types import Send

from dynamo.errors import DynamoError, OverloadedError
from dynamo.frontend.errors import encode_error, error_headers
from dynamo.frontend.exchange import Exchange, Header

_JSON = b"application/json"
_EVENT_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),  # proxies must pass each event on at once
    (b"x-accel-buffering", b"no"),
)


class HttpResponse:
    """The headers of a stream go out with its first event: until then it can still become an error."""

    __slots__ = ("_exchange", "_overload_status", "_send", "_streaming", "request_id")

    def __init__(self, send: Send, exchange: Exchange, overload_status: int = OverloadedError.http_status) -> None:
        """`overload_status` takes the place of OverloadedError's own."""
        self._overload_status = overload_status
        self._send = send
        self._exchange = exchange
        self._streaming = False
        self.request_id = ""

    async def whole(self, body: bytes, status: int = 200, *headers: Header) -> None:
        """A complete JSON response."""
        all_headers = [
            (b"content-type", _JSON),
            (b"content-length", str(len(body)).encode()),
            *headers,
            *self._id_header(),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": all_headers})
        await self._send({"type": "http.response.body", "body": body})

    def event(self, event: bytes) -> None:
        """One or several server-sent events."""
        if not self._streaming:
            self._streaming = True
            self._exchange.start((*_EVENT_HEADERS, *self._id_header()))
        self._exchange.write(event)

    def end(self, event: bytes) -> None:
        """The last event and the end of the stream."""
        self.event(event)
        self._exchange.end()

    async def fail(self, error: DynamoError) -> None:
        """An error response or, once events have gone out, an error event."""
        if self._streaming:
            self.end(b"data: " + encode_error(error) + b"\n\n")
            return
        headers = [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
        await self.whole(encode_error(error), self.status(error), *headers)

    def status(self, error: DynamoError | None) -> int:
        """What the client sees or has seen."""
        if error is None or self._streaming:
            return 200
        return self._overload_status if isinstance(error, OverloadedError) else error.http_status

    def _id_header(self) -> tuple[Header, ...]:
        return ((b"x-request-id", self.request_id.encode()),) if self.request_id else ()
