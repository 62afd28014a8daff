"""Counting must not depend on how the network cuts a response into pieces."""

import asyncio
import socket
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sse_stream import Expected, SseStream, Tally

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
OPENING = b'data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}\n\n'
TEXT = b'data: {"choices":[{"delta":{"content":"\\"content\\":\\"0\\r\\n"},"finish_reason":null}],"usage":null}\n\n'
FINISH = b'data: {"choices":[{"delta":{},"finish_reason":"length"}],"usage":null}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = (OPENING, TEXT, TEXT + TEXT, FINISH, USAGE + DONE)


class SentOnly(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))

    def close(self) -> None:
        self.closed = True


def response(events: Iterable[bytes]) -> bytes:
    chunks = [f"{len(event):x}\r\n".encode() + event + b"\r\n" for event in events]
    return HEAD + b"".join(chunks) + b"0\r\n\r\n"


async def exchange(requests: Sequence[bytes], pieces: Iterable[bytes]) -> tuple[Tally, SentOnly]:
    tally, transport = Tally(), SentOnly()
    with socket.socket() as sock:
        stream = SseStream(sock, iter(requests), Expected(prompt_tokens=9, tokens=4), tally)
        stream.connection_made(transport)
        for piece in pieces:
            stream.data_received(piece)
        stream.connection_lost(None)
        await stream.closed
    return tally, transport


@given(cuts=st.sets(st.integers(1, 2 * len(response(WHOLE)) - 1)))
async def test_any_pieces_give_the_same_counts(cuts: set[int]) -> None:
    # An answer, and the next one. A server does not send the second before it was asked for.
    length = len(response(WHOLE))
    data = response(WHOLE) * 2
    ends = sorted(cuts | {length, 2 * length})
    pieces = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    tally, transport = await exchange([b"first", b"second"], pieces)

    assert not tally.errors
    assert (tally.requests, tally.tokens, tally.events, len(tally.ttft_s)) == (2, 8, 6, 2)
    assert transport.sent == [b"first", b"second"]
    assert transport.closed


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b'HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{"', "status 503"),
        (response(WHOLE)[:-3], "disconnected"),
        (response((OPENING, TEXT, USAGE, DONE)), "no finish reason"),
        (response((OPENING, TEXT, FINISH, USAGE)), "no [DONE]"),
        (response((OPENING, TEXT, FINISH, DONE)), "no usage in the last chunk"),
        (response((OPENING, TEXT, FINISH, USAGE.replace(b":4", b":3"), DONE)), "3 tokens instead of 4"),
        (response((OPENING, TEXT, FINISH, USAGE.replace(b":9", b":8"), DONE)), "a prompt of 8 tokens"),
    ],
)
async def test_a_bad_answer_is_an_error(data: bytes, error: str) -> None:
    tally, _ = await exchange([b"request"], [data])

    assert tally.errors == {error: 1}
