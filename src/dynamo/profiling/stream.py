"""One streamed completion, and when its parts came."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools
import msgspec

from dynamo.errors import InvalidRequestError, UnavailableError

_READ_BYTES = 64 << 10
_EVENT_END = b"\n\n"
_DATA = b"data: "
_DONE = b"[DONE]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where completions come from."""

    url: str  # http(s)://host:port, and a path perhaps
    model: str
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """When the request was sent, and when each event with a token came, on the clock of time.perf_counter()."""

    sent_s: float
    events_s: Sequence[float]  # at least one
    tokens: int  # generated, as the server counts them

    @property
    def ttft_s(self) -> float:
        return self.events_s[0] - self.sent_s


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] = []
    usage: _Usage | None = None


async def complete(server: Server, prompt: Sequence[int], max_tokens: int) -> Completion:
    """Asks for exactly `max_tokens` tokens after a prompt of token ids.

    Raises InvalidRequestError when the server refuses such a request, UnavailableError when there is no whole answer.
    """
    body = msgspec.json.encode(
        {
            "model": server.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    response = _Response()
    try:
        reader, writer = await _connect(server.url)
        try:
            sent_s = time.perf_counter()
            writer.write(_head(server, len(body)) + body)
            while not response.complete and (data := await reader.read(_READ_BYTES)):
                response.feed(data)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    except (OSError, httptools.HttpParserError, msgspec.MsgspecError) as error:
        raise UnavailableError(f"{server.url} does not answer as expected: {error}") from error
    return response.completion(sent_s)


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    return await asyncio.open_connection(parts.hostname, port, ssl=ssl.create_default_context() if secure else None)


def _head(server: Server, length: int) -> bytes:
    parts = urlsplit(server.url)
    lines = [
        f"POST {parts.path.rstrip('/')}/v1/completions HTTP/1.1",
        f"Host: {parts.netloc}",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        "Connection: close",
    ]
    if server.api_key is not None:
        lines.append(f"Authorization: Bearer {server.api_key}")
    return "\r\n".join([*lines, "", ""]).encode()


class _Response:
    """What httptools calls back."""

    def __init__(self) -> None:
        self.complete = False
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""  # of an event that is not whole yet, or of an error's body
        self._events_s: list[float] = []
        self._tokens: int | None = None

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self._rest += data
        if self._parser.get_status_code() != 200:
            return
        now_s = time.perf_counter()
        *events, self._rest = self._rest.split(_EVENT_END)
        for event in events:
            payload = event.strip().removeprefix(_DATA)
            if payload and payload != _DONE:
                self._on_event(payload, now_s)

    def on_message_complete(self) -> None:
        self.complete = True

    def completion(self, sent_s: float) -> Completion:
        status = self._parser.get_status_code()
        if status in (400, 404, 422):
            raise InvalidRequestError(f"HTTP {status}: {self._rest[:500].decode(errors='replace')}")
        if status != 200 or not self.complete or not self._events_s or not self._tokens:
            raise UnavailableError(f"HTTP {status}, no whole answer: {self._rest[:500].decode(errors='replace')}")
        return Completion(sent_s=sent_s, events_s=self._events_s, tokens=self._tokens)

    def _on_event(self, payload: bytes, now_s: float) -> None:
        chunk = msgspec.json.decode(payload, type=_Chunk)
        if chunk.choices:
            self._events_s.append(now_s)
        if chunk.usage is not None:
            self._tokens = chunk.usage.completion_tokens
