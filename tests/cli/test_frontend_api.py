"""The supervisor's questions to its frontend."""

import asyncio

import pytest

from dynamo.cli.frontend_api import reachable_url, read_figures, serves
from dynamo.cli.status import Figures


@pytest.mark.parametrize(
    ("url", "reachable"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("http://[::]:8000", "http://[::1]:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://10.1.2.3:1", "http://10.1.2.3:1"),
    ],
)
def test_reachable_url(url: str, reachable: str) -> None:
    assert reachable_url(url) == reachable


async def test_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # must not be asked
    asked = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        path = request.split()[1].decode()
        asked.append(path)
        health, metrics = b'{"models": ["org/a b"], "status": "healthy"}', b"dynamo_frontend_inflight_requests 3.0\n"
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n%s" % (health if path == "/health" else metrics))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = "http://127.0.0.1:{1}".format(*server.sockets[0].getsockname())
        assert await asyncio.to_thread(serves, url, "org/a b")
        assert not await asyncio.to_thread(serves, url, "unknown")
        assert await asyncio.to_thread(read_figures, url) == Figures(in_flight=3)
    assert asked == ["/health", "/health", "/metrics"]
    assert not await asyncio.to_thread(serves, url, "m")  # nobody there
    assert await asyncio.to_thread(read_figures, url) is None
