"""HTTP by hand: a client that is as rude as a test wants it to be."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from dynamo.testing import within

JSON_HEADERS = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer that has been read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> dict[str, Any]:
        """What an error body holds; AssertionError when it has not the shape of OpenAI's."""
        body = self.json()
        assert set(body) == {"error"}, body
        error: dict[str, Any] = body["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert isinstance(error["message"], str)
        assert error["message"]
        assert isinstance(error["type"], str)
        assert isinstance(error["code"], str)
        return error


class Connection:
    """One TCP connection to a frontend."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def post(self, path: str, body: bytes, headers: Mapping[str, str] = JSON_HEADERS) -> None:
        self.send(message("POST", path, body, headers))

    async def head(self) -> tuple[int, dict[str, str]]:
        """The status and the headers of the next answer."""
        raw = await within(self.reader.readuntil(b"\r\n\r\n"))
        status_line, *lines = raw.decode("latin-1").strip().split("\r\n")
        pairs = (line.split(": ", 1) for line in lines)
        return int(status_line.split()[1]), {name.lower(): value for name, value in pairs}

    async def response(self, *, bodiless: bool = False) -> Response:
        status, headers = await self.head()
        if bodiless:
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b"".join([chunk async for chunk in self.chunks()])
        else:
            body = await within(self.reader.readexactly(int(headers["content-length"])))
        return Response(status=status, headers=headers, body=body)

    async def chunks(self) -> AsyncIterator[bytes]:
        while size := int(await within(self.reader.readline()), 16):
            yield (await within(self.reader.readexactly(size + 2)))[:-2]
        await within(self.reader.readline())

    async def is_closed(self) -> bool:
        """Whether the server closes the connection without a further word."""
        return await within(self.reader.read()) == b""

    def reset(self) -> None:
        """Goes away without a word."""
        self.writer.transport.abort()


@asynccontextmanager
async def connect(url: str, *, limit: int = 1 << 20, tls: ssl.SSLContext | None = None) -> AsyncIterator[Connection]:
    """`limit`: bytes that may wait unread on this side before the socket is left alone, half of them."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=limit, ssl=tls)
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def dawdle(url: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Connection]:
    """A connection that takes few bytes ahead of its reader."""
    parts = urlsplit(url)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((parts.hostname, parts.port))
    name = None if tls is None else parts.hostname
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096, ssl=tls, server_hostname=name)
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()


async def request(
    url: str, method: str, path: str, body: bytes | object = b"", headers: Mapping[str, str] = JSON_HEADERS
) -> Response:
    """One request on a connection of its own; what is not bytes is sent as JSON."""
    async with connect(url) as connection:
        connection.send(message(method, path, encoded(body), headers))
        return await connection.response(bodiless=method == "HEAD")


async def post(url: str, path: str, body: bytes | object) -> Response:
    return await request(url, "POST", path, body)


async def get(url: str, path: str) -> Response:
    return await request(url, "GET", path)


def message(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: test", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def encoded(body: bytes | object) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def events(body: bytes) -> list[Any]:
    """The payloads of server-sent events; "[DONE]" as it is."""
    parts = body.decode().split("\n\n")
    assert parts.pop() == "", "the last event has no end"
    assert all(part.startswith("data: ") for part in parts), parts
    payloads = [part.removeprefix("data: ") for part in parts]
    return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]
