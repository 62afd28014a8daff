"""HTTP itself, as rude clients speak it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from dynamo.frontend.http_protocol import HEAD_BYTES_MAX, HEADERS_MAX
from dynamo.testing import within

from .conftest import Stack
from .raw_http import JSON_HEADERS, connect, encoded, events, get, message, post, request
from .served import ECHO, MOCK, until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"
LIMIT_BYTES = 200_000


def chat(**fields: Any) -> bytes:
    return encoded({"model": ECHO, "messages": [{"role": "user", "content": "Hello"}]} | fields)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small(stack: Stack) -> AsyncIterator[str]:
    """The URL of a frontend with a low limit for bodies."""
    _, url = await stack.deployment.frontend("--http-body-limit-mb", str(LIMIT_BYTES / 1e6))
    await until_served(url, 3)
    yield url


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def impatient(stack: Stack) -> AsyncIterator[str]:
    """The URL of a frontend that does not wait long for the rest of a request."""
    _, url = await stack.deployment.frontend("--http-client-timeout", "0.3")
    await until_served(url, 3)
    yield url


async def test_body_of_announced_size_over_the_limit(small: str) -> None:
    async with connect(small) as connection:
        head = message("POST", CHAT, b"", JSON_HEADERS).replace(b"content-length: 0", b"content-length: 200001")
        connection.send(head)  # it is refused before a byte of it is sent
        response = await connection.response()
    assert response.status == 413
    assert response.error()["code"] == "request_too_large"
    assert str(LIMIT_BYTES) in response.error()["message"]


async def test_client_that_asks_before_it_sends(small: str) -> None:
    async with connect(small) as connection:
        headers = {**JSON_HEADERS, "expect": "100-continue"}
        connection.send(message("POST", CHAT, b"", headers).replace(b"length: 0", b"length: 999999999"))
        assert (await connection.response()).status == 413
    async with connect(small) as connection:
        body = chat()
        head, _, _ = message("POST", CHAT, body, headers).partition(body)
        connection.send(head)
        assert (await connection.head())[0] == 100
        connection.send(body)
        assert (await connection.response()).status == 200


async def test_chunked_body_over_the_limit(small: str) -> None:
    async with connect(small) as connection:
        connection.send(_chunked_head())
        for _ in range(11):
            connection.send(b"4e20\r\n" + b" " * 20_000 + b"\r\n")
        response = await connection.response()  # the end never comes
    assert response.status == 413
    assert response.error()["code"] == "request_too_large"


async def test_chunked_body_within_the_limit(small: str) -> None:
    async with connect(small) as connection:
        connection.send(_chunked_head())
        for byte in chat():
            connection.send(b"1\r\n%c\r\n" % byte)
        connection.send(b"0\r\n\r\n")
        assert (await connection.response()).status == 200


async def test_body_at_the_limit(small: str) -> None:
    body = chat()
    fits = body + b" " * (LIMIT_BYTES - len(body))
    assert (await post(small, CHAT, fits)).status == 200
    assert (await post(small, CHAT, fits + b" ")).status == 413
    assert (await post(small, CHAT, body)).status == 200  # the next one is not affected


async def test_the_connection_outlives_a_refusal(stack: Stack) -> None:
    async with connect(stack.url) as connection:
        for body, status in ((b"{", 400), (chat(model="none"), 404), (chat(), 200), (b"", 400), (chat(), 200)):
            connection.post(CHAT, body)
            assert (await connection.response()).status == status


async def test_pipelined_requests(stack: Stack) -> None:
    async with connect(stack.url) as connection:
        for position in range(5):
            connection.post(CHAT, chat(messages=[{"role": "user", "content": f"number {position}"}]))
        connection.send(message("GET", "/live", b"", {}))
        for position in range(5):
            response = await connection.response()
            assert f"number {position}" in response.json()["choices"][0]["message"]["content"]
        assert (await connection.response()).json() == {"status": "live"}


async def test_too_many_pipelined_requests(stack: Stack) -> None:
    async with connect(stack.url) as connection:
        for _ in range(100):
            connection.post(CHAT, chat(model=MOCK, ignore_eos=True, max_tokens=30_000))
        refused = await connection.response()
        assert refused.status == 400
        assert await connection.is_closed()


async def test_request_in_single_bytes(stack: Stack) -> None:
    async with connect(stack.url) as connection:
        for byte in message("POST", CHAT, chat(), JSON_HEADERS):
            connection.send(bytes([byte]))
            await connection.writer.drain()
        assert (await connection.response()).status == 200


async def test_head(stack: Stack) -> None:
    for path in ("/v1/models", "/health", "/live", "/metrics", "/openapi.json"):
        async with connect(stack.url) as connection:
            connection.send(message("HEAD", path, b"", {"connection": "close"}))
            response = await connection.response(bodiless=True)
            assert response.status == 200
            assert int(response.headers["content-length"]) > 0
            assert await connection.is_closed()


async def test_http_1_0(stack: Stack) -> None:
    async with connect(stack.url) as connection:
        connection.send(message("POST", CHAT, chat(), JSON_HEADERS).replace(b"HTTP/1.1", b"HTTP/1.0"))
        response = await connection.response()
        assert response.status == 200
        assert "content-length" in response.headers
        assert await connection.is_closed()


async def test_stream_in_http_1_0(stack: Stack) -> None:
    """Its end is that of the connection: clients so old know no chunks."""
    async with connect(stack.url) as connection:
        connection.send(message("POST", CHAT, chat(stream=True), JSON_HEADERS).replace(b"HTTP/1.1", b"HTTP/1.0"))
        status, headers = await connection.head()
        assert (status, headers["connection"]) == (200, "close")
        assert "transfer-encoding" not in headers
        assert events(await within(connection.reader.read()))[-1] == "[DONE]"


async def test_connection_close(stack: Stack) -> None:
    async with connect(stack.url) as connection:
        connection.post(CHAT, chat(stream=True), {**JSON_HEADERS, "connection": "close"})
        response = await connection.response()
        assert events(response.body)[-1] == "[DONE]"
        assert await connection.is_closed()


async def test_offer_of_another_protocol_is_passed_over(stack: Stack) -> None:
    """As Java's client makes it with every request."""
    headers = {**JSON_HEADERS, "connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAEAAEAA"}
    response = await request(stack.url, "POST", CHAT, chat(), headers)
    assert response.status == 200
    assert "Unsupported upgrade" not in stack.frontend.output


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("connection_header", ["upgrade, close", "close, HTTP2-Settings, Upgrade"])
async def test_offer_with_the_last_request_of_a_connection(stack: Stack, version: str, connection_header: str) -> None:
    head = f"GET /live HTTP/{version}\r\nhost: x\r\nconnection: {connection_header}\r\nupgrade: h2c\r\n\r\n"
    async with connect(stack.url) as connection:
        connection.send(head.encode())
        assert (await connection.response()).status == 200
        assert await connection.is_closed()


@pytest.mark.parametrize(
    "nonsense",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT there:443 HTTP/1.1\r\nhost: there\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_not_http(stack: Stack, nonsense: bytes) -> None:
    async with connect(stack.url) as connection:
        connection.send(nonsense)
        response = await connection.response()
        assert response.status == 400
        assert response.error()["type"] == "invalid_request_error"
        assert await connection.is_closed()


@pytest.mark.parametrize("kind", ["one header", "headers", "path"])
async def test_large_head(stack: Stack, kind: str) -> None:
    def head(size: int) -> bytes:
        if kind == "path":
            return b"GET /" + b"x" * size + b" HTTP/1.1\r\n\r\n"
        count = 1 if kind == "one header" else HEADERS_MAX // 2
        fill = (b"x: " + b"y" * (size // count) + b"\r\n") * count
        return b"GET /live HTTP/1.1\r\n" + fill + b"\r\n"

    async with connect(stack.url) as connection:
        connection.send(head(HEAD_BYTES_MAX // 2))
        assert (await connection.response()).status == (404 if kind == "path" else 200)
        connection.send(head(HEAD_BYTES_MAX + 100))
        response = await connection.response()
        assert response.status == 431
        assert response.error()["code"] == "request_too_large"
        assert await connection.is_closed()


async def test_too_many_headers(stack: Stack) -> None:
    async with connect(stack.url) as connection:
        connection.send(b"GET /live HTTP/1.1\r\n" + b"x: y\r\n" * HEADERS_MAX + b"\r\n")
        assert (await connection.response()).status == 200
        connection.send(b"GET /live HTTP/1.1\r\n" + b"x: y\r\n" * (HEADERS_MAX + 2))
        response = await connection.response()
        assert (response.status, response.error()["code"]) == (431, "request_too_large")
        assert await connection.is_closed()


async def test_too_many_trailers(stack: Stack) -> None:
    async with connect(stack.url) as connection:
        connection.send(_chunked_head() + b"0\r\n" + b"x: y\r\n" * (HEADERS_MAX + 2))
        assert (await connection.response()).status in (400, 431)
        assert await connection.is_closed()


@pytest.mark.parametrize("start", [b"", b"GET /", b"GET / HTTP/1.1\r\nx: ", b"POST / HTTP/1.1\r\ntransfer-encoding: "])
async def test_endless_head(stack: Stack, start: bytes) -> None:
    async with connect(stack.url) as connection:
        connection.send(start)
        reading = asyncio.create_task(connection.response())
        while not reading.done():
            connection.send(b"G" * 10_000)
            await asyncio.wait({reading}, timeout=0.01)
        assert (await within(reading)).status in (400, 431)


async def test_garbage_behind_a_stream_is_not_answered_into_it(stack: Stack) -> None:
    async with connect(stack.url) as connection:
        connection.post(CHAT, chat(model=MOCK, stream=True, ignore_eos=True, max_tokens=30_000))
        status, _ = await connection.head()
        assert status == 200
        connection.send(b"\x00garbage\r\n\r\n")
        rest = await within(connection.reader.read())
    assert b"HTTP/1.1" not in rest


async def test_many_connections_that_say_nothing(stack: Stack) -> None:
    silent = [await asyncio.open_connection(*_address(stack.url)) for _ in range(100)]
    assert (await get(stack.url, "/live")).status == 200
    for _, writer in silent:
        writer.transport.abort()


async def test_json_is_not_escaped_needlessly(stack: Stack) -> None:
    response = await post(stack.url, CHAT, chat(messages=[{"role": "user", "content": "Grüße 世界"}]))
    assert "Grüße 世界" in response.body.decode()
    assert json.loads(response.body)


async def test_more_connections_than_there_may_be(stack: Stack) -> None:
    _, url = await stack.deployment.frontend("--http-max-connections", "3")
    async with AsyncExitStack() as opened:
        connections = [await opened.enter_async_context(connect(url)) for _ in range(3)]
        for connection in connections:
            connection.send(message("GET", "/live", b"", {}))
            assert (await connection.response()).status == 200
        async with connect(url) as refused:
            refused.send(message("GET", "/live", b"", {}))
            response = await refused.response()
            assert (response.status, response.error()["code"]) == (503, "overloaded")
            assert response.headers["retry-after"] == "1"
            assert await refused.is_closed()
        connections[0].send(message("GET", "/live", b"", {}))
        assert (await connections[0].response()).status == 200
    await within(_until_live(url))


async def test_far_more_connections_than_there_may_be(stack: Stack) -> None:
    """Refusing takes a place for a moment too: beyond some there is no word even."""
    _, url = await stack.deployment.frontend("--http-max-connections", "1")
    async with AsyncExitStack() as opened:
        connections = [await opened.enter_async_context(connect(url)) for _ in range(400)]
        ends = await within(asyncio.gather(*(c.reader.read(1) for c in connections[1:]), return_exceptions=True))
        assert b"H" in ends
        assert b"" in ends or any(isinstance(end, ConnectionError) for end in ends)
    await within(_until_live(url))


async def _until_live(url: str) -> None:
    while True:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            if (await get(url, "/live")).status == 200:
                return
        await asyncio.sleep(0.01)


def _chunked_head() -> bytes:
    head = message("POST", CHAT, b"", JSON_HEADERS)
    return head.replace(b"content-length: 0", b"transfer-encoding: chunked")


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


@pytest.mark.parametrize("part", [b"", b"POST /v1/chat", message("POST", CHAT, chat(), JSON_HEADERS)[:-1]])
async def test_client_that_goes_silent(impatient: str, part: bytes) -> None:
    async with connect(impatient) as connection:
        connection.send(part)
        response = await connection.response()
        assert (response.status, response.error()["type"]) == (408, "invalid_request_error")
        assert await connection.is_closed()


async def test_head_that_comes_byte_by_byte(impatient: str) -> None:
    """No silence is long, but there is no end either."""
    async with connect(impatient) as connection:
        connection.send(b"GET /live HTTP/1.1\r\nx: ")
        reading = asyncio.create_task(connection.response())
        while not reading.done():
            connection.send(b"y")
            await asyncio.wait({reading}, timeout=0.05)
        assert (await within(reading)).status == 408


async def test_body_that_comes_byte_by_byte_is_waited_for(impatient: str) -> None:
    async with connect(impatient) as connection:
        data = message("POST", CHAT, chat(), JSON_HEADERS)
        connection.send(data[:-8])
        for byte in data[-8:]:
            await asyncio.sleep(0.1)  # in all more than the time that a head may take
            connection.send(bytes([byte]))
        assert (await connection.response()).status == 200


async def test_silence_is_no_fault_while_the_answer_comes(impatient: str) -> None:
    body = encoded({"model": MOCK, "prompt": "Hello", "stream": True, "max_tokens": 1000, "ignore_eos": True})
    async with connect(impatient) as connection:
        connection.send(message("POST", "/v1/completions", body, JSON_HEADERS) + b"GET /li")
        response = await connection.response()
        assert response.status == 200
        assert response.body.endswith(b"data: [DONE]\n\n")
        connection.send(b"ve HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await connection.response()).status == 200


async def test_client_that_takes_nothing(impatient: str) -> None:
    choices = {"prompt": ["Hello"] * 8, "n": 8, "stream": True, "max_tokens": 1000, "ignore_eos": True}  # 16 MB
    async with connect(impatient, limit=1 << 10) as connection:
        connection.send(message("POST", "/v1/completions", encoded({"model": MOCK} | choices), JSON_HEADERS))
        await within(_client_counted_as_gone(impatient))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await connection.response()


async def _client_counted_as_gone(url: str) -> None:
    while b"dynamo_frontend_disconnected_clients_total 0.0" in (await get(url, "/metrics")).body:
        pass
