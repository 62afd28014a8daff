"""One HTTP response, written as plain ASGI messages."""

from starlette.types import Send

from dynamo.errors import DynamoError, UnavailableError
from dynamo.frontend.errors import RETRY_AFTER_S, encode_error

_JSON = b"application/json"
_EVENTS = b"text/event-stream; charset=utf-8"


class HttpResponse:
    """A JSON body, or server-sent events: the headers go out with the first of them."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._streaming = False
        self.request_id = ""

    async def whole(self, body: bytes, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
        """A complete JSON response."""
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, _JSON, length, *headers)
        await self._send({"type": "http.response.body", "body": body})

    async def event(self, event: bytes) -> None:
        """One or several server-sent events."""
        if not self._streaming:
            self._streaming = True
            # Proxies must pass each event on at once.
            await self._start(200, _EVENTS, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def end(self, event: bytes) -> None:
        """The last event and the end of the stream."""
        await self.event(event)
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: DynamoError) -> None:
        """An error response or, once events have gone out, an error event."""
        if self._streaming:
            await self.end(b"data: " + encode_error(error) + b"\n\n")
            return
        retry = [(b"retry-after", str(RETRY_AFTER_S).encode())] if isinstance(error, UnavailableError) else []
        await self.whole(encode_error(error), error.http_status, *retry)

    def status(self, error: DynamoError | None) -> int:
        """What the client sees or has seen."""
        return 200 if error is None or self._streaming else error.http_status

    async def _start(self, status: int, media_type: bytes, *headers: tuple[bytes, bytes]) -> None:
        all_headers = [(b"content-type", media_type), *headers]
        if self.request_id:
            all_headers.append((b"x-request-id", self.request_id.encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": all_headers})
