"""A client of streamed chat completions that does as little as possible for each event.

It must not be what is measured: a read is one system call for the acknowledgement, an append and a look at the last
bytes. Everything else happens once per request.
"""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

from benchmarks.answer import Answer, read_answer, text_events

_OK = b"HTTP/1.1 200 "
_LAST_LINES = b"\r\n\r\n"
_END = b"\r\n0\r\n\r\n"  # the last chunk of a chunked body


@dataclass(slots=True)
class Tally:
    """What came back on all connections."""

    requests: int = 0
    tokens: int = 0
    events: int = 0  # with text
    ttft_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Expected:
    """What every answer must have."""

    prompt_tokens: int
    tokens: int


class SseStream(asyncio.Protocol):
    """One connection with one request in flight, until `requests` has no more."""

    def __init__(self, sock: socket.socket, requests: Iterator[bytes], expected: Expected, tally: Tally) -> None:
        self._sock = sock
        self._requests = requests
        self._expected = expected
        self._tally = tally
        self._transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []
        self._sent_s = 0.0
        self._in_flight = False
        self._waits_for_text = True
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without inheriting from it
        self._send(self._transport)

    def data_received(self, data: bytes) -> None:
        # The kernel falls back to delayed acknowledgements by itself. Those would add up to 40 ms where a server
        # lets a small packet wait for the one before it.
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        self._parts.append(data)
        if self._waits_for_text:
            self._look_for_text()
        # A short read may hold a piece of the last lines only.
        if data.endswith(_LAST_LINES) or len(data) < len(_LAST_LINES):
            self._look_for_end()

    def connection_lost(self, error: Exception | None) -> None:
        if self._in_flight:
            self._tally.errors["disconnected"] += 1
        self.closed.set_result(None)

    def _send(self, transport: asyncio.Transport) -> None:
        request = next(self._requests, None)
        self._in_flight = request is not None
        if request is None:
            transport.close()
            return
        self._parts.clear()
        self._waits_for_text = True
        self._sent_s = time.perf_counter()
        transport.write(request)

    def _look_for_text(self) -> None:
        now_s = time.perf_counter()
        body = b"".join(self._parts)
        if len(body) < len(_OK):
            return
        if not body.startswith(_OK):
            self._waits_for_text = False
            self._give_up("status " + body[len("HTTP/1.1 ") :][:3].decode(errors="replace"))
        elif text_events(body):
            self._waits_for_text = False
            self._tally.ttft_s.append(now_s - self._sent_s)

    def _look_for_end(self) -> None:
        body = b"".join(self._parts)
        if self._transport is None or not self._in_flight or not body.endswith(_END):
            return
        try:
            self._count(read_answer(body))
        except ValueError as error:
            self._tally.errors[str(error)] += 1
        self._send(self._transport)

    def _count(self, answer: Answer) -> None:
        tally = self._tally
        tally.requests += 1
        tally.tokens += answer.tokens
        tally.events += answer.events
        if answer.tokens != self._expected.tokens:
            tally.errors[f"{answer.tokens} tokens instead of {self._expected.tokens}"] += 1
        if answer.prompt_tokens != self._expected.prompt_tokens:
            tally.errors[f"a prompt of {answer.prompt_tokens} tokens"] += 1

    def _give_up(self, reason: str) -> None:
        self._tally.errors[reason] += 1
        self._in_flight = False
        if self._transport is not None:
            self._transport.close()
