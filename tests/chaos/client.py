"""A client of one request for each connection. It does not ask again by itself: what fails is seen."""

import asyncio
import time
from typing import Any
from urllib.parse import urlsplit

from tests.e2e.raw_http import encoded, message

ANSWER_S = 90.0  # the longest that anybody should ever wait
_PIECE_BYTES = 64 << 10
_HEADERS = {"content-type": "application/json", "connection": "close"}


class RefusedError(Exception):
    """An HTTP status other than 200."""


class BrokenError(Exception):
    """The connection could not be made, or broke before the end."""


class Gaps:
    """The longest times without a word."""

    def __init__(self) -> None:
        self.first_s = 0.0
        self.later_s = 0.0


async def ask(url: str, path: str, body: dict[str, Any], gaps: Gaps | None = None) -> bytes:
    """The whole body of the answer to a streamed request, without HTTP's own framing.

    Raises RefusedError, BrokenError, TimeoutError.
    """
    parts = urlsplit(url)
    async with asyncio.timeout(ANSWER_S):
        try:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        except OSError as error:
            raise BrokenError(f"no connection: {error}") from error
        try:
            writer.write(message("POST", path, encoded(body), _HEADERS))
            return _content(await _read(reader, gaps or Gaps()))
        except OSError as error:
            raise BrokenError(str(error)) from error
        finally:
            writer.transport.abort()


async def _read(reader: asyncio.StreamReader, gaps: Gaps) -> bytes:
    pieces: list[bytes] = []
    last_s = time.monotonic()
    while piece := await reader.read(_PIECE_BYTES):
        now_s = time.monotonic()
        if pieces:
            gaps.later_s = max(gaps.later_s, now_s - last_s)
        else:
            gaps.first_s = max(gaps.first_s, now_s - last_s)
        last_s = now_s
        pieces.append(piece)
    return b"".join(pieces)


def _content(data: bytes) -> bytes:
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        raise BrokenError("the connection ended before the answer began")
    status = head.split(b" ", 2)[1]
    if status != b"200":
        raise RefusedError(f"{status.decode()}: {rest.decode(errors='replace')}")
    chunks: list[bytes] = []
    while True:
        size, found, rest = rest.partition(b"\r\n")
        if not found:
            raise BrokenError("the connection ended in the middle of the answer")
        if (length := int(size, 16)) == 0:
            return b"".join(chunks)
        if len(rest) < length + 2:
            raise BrokenError("the connection ended in the middle of the answer")
        chunks.append(rest[:length])
        rest = rest[length + 2 :]
