"""Stores by obstore: their errors in our terms."""

import asyncio
import importlib.util
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dynamo.errors import ConfigError, ConnectionLostError, InvalidRequestError, NotFoundError
from dynamo.testing import within
from dynamo.transfer import ObjectStore, open_store
from dynamo.transfer.objects import ShortObjectError
from tests.transfer.s3_server import INSTALLED, S3Server, s3_server

needs_obstore = pytest.mark.skipif(
    importlib.util.find_spec("obstore") is None, reason="NOT TESTED: object stores (pip install 'dynamo-py[object]')"
)
needs_s3 = pytest.mark.skipif(not INSTALLED, reason="NOT TESTED: S3 (pip install localbucket)")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[S3Server]:
    async with s3_server(tmp_path) as started:
        yield started


@pytest.fixture(params=["memory", "directory", pytest.param("s3", marks=needs_s3)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    if request.param == "memory":
        yield open_store("memory:///")
    elif request.param == "directory":
        yield open_store(tmp_path.as_uri())
    else:
        async with s3_server(tmp_path) as started:
            yield started.store()


@needs_obstore
async def test_objects_come_back(store: ObjectStore) -> None:
    data = bytes(range(256)) * 1000
    await within(store.put("kv/0123", bytearray(b"the former")))
    await within(store.put("kv/0123", bytearray(data)))
    found = await within(store.get_ranges("kv/0123", [5, 255_000, 0], [3, 1000, 256_000]))
    assert [bytes(each) for each in found] == [data[5:8], data[255_000:], data]


@needs_obstore
async def test_objects_are_listed_and_deleted(store: ObjectStore) -> None:
    for key in ("kv/0123", "kv/deeper/4567", "kvv/0"):
        await within(store.put(key, bytearray(1)))
    assert sorted(await within(_listed(store, "kv"))) == ["kv/0123", "kv/deeper/4567"]
    assert await within(_listed(store, "nothing")) == []
    for _ in range(2):
        await within(store.delete("kv/0123"))
    assert await within(_listed(store, "kv")) == ["kv/deeper/4567"]
    with pytest.raises(NotFoundError):
        await within(store.get_ranges("kv/0123", [0], [1]))


async def _listed(store: ObjectStore, directory: str) -> list[str]:
    return [key async for page in store.keys(directory) for key in page]


@needs_obstore
async def test_what_is_not_there(store: ObjectStore) -> None:
    await within(store.put("short", bytearray(10)))
    with pytest.raises(NotFoundError):
        await within(store.get_ranges("absent", [0], [1]))
    for start, length in ((10, 1), (20, 5)):
        with pytest.raises(ShortObjectError, match="has 10 bytes"):
            await within(store.get_ranges("short", [start], [length]))
    for key in ("../above", "a//b"):
        with pytest.raises(InvalidRequestError):
            await within(store.put(key, bytearray(1)))


@needs_obstore
@needs_s3
async def test_servers_that_are_gone(server: S3Server) -> None:
    store = server.store()
    await within(store.put("a", bytearray(b"here")))
    server.process.signal(signal.SIGKILL)
    await server.process.exit_code()
    with pytest.raises(ConnectionLostError):
        await within(store.get_ranges("a", [0], [4]), 20)
    for use in (store.put("a", bytearray(4)), store.delete("a"), _listed(store, "a")):
        with pytest.raises(ConnectionLostError):
            await within(use, 20)


@needs_obstore
async def test_servers_that_refuse() -> None:
    """With an error that no try again mends."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as listening:
        sock: socket.socket = listening.sockets[0]
        endpoint = f"http://127.0.0.1:{sock.getsockname()[1]}"
        store = open_store(
            "s3://b", endpoint=endpoint, region="us-east-1", access_key_id="any", secret_access_key="any"
        )
        with pytest.raises(InvalidRequestError):
            await within(store.get_ranges("a", [0], [4]))
        for use in (store.put("a", bytearray(4)), store.delete("a")):
            with pytest.raises(InvalidRequestError):
                await within(use)
        with pytest.raises(ConnectionLostError):  # obstore does not say what was wrong with a list
            await within(_listed(store, "a"))


@needs_obstore
@pytest.mark.parametrize("url", ["", "nonsense", "carrier-pigeon://a", "s3://"])
def test_urls_that_are_no_store(url: str) -> None:
    with pytest.raises(ConfigError):
        open_store(url)


@needs_obstore
def test_an_error_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, **options: object) -> None:
        raise ValueError

    monkeypatch.setattr("obstore.store.from_url", refuse)
    with pytest.raises(ConfigError, match="cannot be an object store"):
        open_store("memory:///")


@needs_obstore
def test_options_that_there_are_not() -> None:
    for url in ("s3://bucket", "memory:///"):
        with pytest.raises(ConfigError):
            open_store(url, wings="two")


def test_without_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"pip install 'dynamo-py\[object\]'"):
        open_store("memory:///")
