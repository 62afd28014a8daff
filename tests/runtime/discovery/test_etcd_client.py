"""Endpoints, users, certificates, and answers that are not etcd's."""

import asyncio
import base64
import json
import secrets
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dynamo.errors import ConfigError
from dynamo.runtime import DistributedRuntime
from dynamo.runtime.discovery.base import Put
from dynamo.runtime.discovery.etcd import EtcdDiscovery
from dynamo.runtime.discovery.etcd_client import EtcdClient
from dynamo.runtime.discovery.etcd_config import EtcdConfig
from dynamo.runtime.discovery.etcd_errors import EtcdRefusedError, EtcdUnavailableError
from dynamo.runtime.discovery.etcd_messages import RangeRequest, RangeResponse
from dynamo.testing import within
from dynamo.testing.discovery import follow
from dynamo.testing.etcd_server import EtcdServer

from .conftest import Certificates, MakeEtcd

ANY = RangeRequest(b"k")


async def test_backend_by_its_name(
    monkeypatch: pytest.MonkeyPatch, etcd: EtcdServer, root: str, make: MakeEtcd
) -> None:
    monkeypatch.setenv("DYN_DISCOVERY_BACKEND", "etcd")
    monkeypatch.setenv("ETCD_ENDPOINTS", etcd.url)
    first, second = DistributedRuntime(), DistributedRuntime()
    assert isinstance(first.discovery, EtcdDiscovery)
    watch = second.discovery.watch("some/")
    await first.register("some/key", b"v")
    assert await within(anext(watch)) == Put("some/key", b"v")
    await within(asyncio.gather(first.close(), second.close()))


async def test_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "dynamo.runtime.discovery.etcd")
    monkeypatch.delitem(sys.modules, "dynamo.runtime.discovery.etcd_client")
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ConfigError, match=r"pip install 'dynamo-py\[etcd\]'"):
        DistributedRuntime(discovery_backend="etcd")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 13\r\n\r\n<html></html>",
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 32\r\n\r\n" + b'{"message":"no leader","code":14}'[:32],
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
    ],
    ids=["not-json", "proxy", "cut", "not-http", "closed"],
)
async def test_something_that_is_not_etcd(answer: bytes) -> None:
    async with answering(lambda _: answer) as url, client(url) as connected:
        with pytest.raises(EtcdUnavailableError, match="http:"):
            await connected.call("/v3/kv/range", ANY, RangeResponse)
        with pytest.raises(EtcdUnavailableError):
            await anext(connected.watch(b"a", b"b", 1))


async def test_member_without_a_leader_is_left_for_another() -> None:
    """Each member of a cluster says so for itself."""

    def lost(_: bytes) -> bytes:
        return reply(503, {"error": "no leader", "message": "etcdserver: no leader", "code": 14})

    def well(request: bytes) -> bytes:
        assert b"grpc-metadata-hasleader: true" in request.lower()
        return reply(200, {"header": {"revision": "7"}})

    async with answering(lost) as first, answering(well) as second, client(f"{first},{second}") as connected:
        answer = await connected.call("/v3/kv/range", ANY, RangeResponse)
    assert answer.header.revision == 7


@pytest.mark.parametrize(
    "body",
    [
        {"error": "etcdserver: no leader", "message": "etcdserver: no leader", "code": 14},
        {"error": {"grpc_code": 14, "http_code": 503, "message": "etcdserver: no leader"}},  # of a stream
        {"error": {"code": 14, "message": "etcdserver: no leader", "details": []}},  # of a stream, by newer members
    ],
)
async def test_no_leader_anywhere(body: dict[str, Any]) -> None:
    async with (
        answering(lambda _: reply(503, body)) as url,
        client(f"{url},{url.replace('127.0.0.1', 'localhost')}") as connected,
    ):
        with pytest.raises(EtcdUnavailableError, match="no leader"):
            await connected.call("/v3/kv/range", ANY, RangeResponse)
        with pytest.raises(EtcdUnavailableError, match="no leader"):
            await anext(connected.watch(b"a", b"b", 1))


async def test_watch_that_is_broken_off() -> None:
    body = {"error": {"grpc_code": 14, "message": "etcdserver: no leader"}}
    async with answering(lambda _: reply(200, body)) as url, client(url) as connected:
        with pytest.raises(EtcdUnavailableError, match="no leader"):
            await anext(connected.watch(b"a", b"b", 1))


async def test_users(own_etcd: EtcdServer, root: str, make: MakeEtcd) -> None:
    """One that may use its prefix and nothing else, as docs/many-machines.md wants it."""
    known: dict[str, Any] = {"auth_username": "worker", "auth_password": "pässword"}
    before = make(own_etcd, **known)  # etcd has no users yet, so it asks for no password
    await before.register("a", b"1")
    add_users(own_etcd, known["auth_username"], known["auth_password"], prefix=root)
    await before.register("b", b"2")
    other = make(own_etcd, **known)
    watch = other.watch("")
    view: dict[str, bytes] = {}
    await follow(watch, {"a": b"1", "b": b"2"}, view=view)

    for wrong in ({}, known | {"auth_password": "guess"}, {"auth_username": "root"}):
        with pytest.raises(ConfigError, match="etcd"):
            await within(make(own_etcd, **wrong).register("c", b"3"), 5)
    foreign = EtcdDiscovery(EtcdConfig(endpoints=own_etcd.url, **known), root="another/")
    with pytest.raises(ConfigError, match="permission denied"):
        await within(foreign.register("c", b"3"), 5)
    await foreign.close()

    own_etcd.stop()  # which forgets its tokens
    await asyncio.to_thread(own_etcd.start)
    await before.register("d", b"4")
    await follow(watch, {"a": b"1", "b": b"2", "d": b"4"}, view=view)
    await before.close()
    await follow(watch, {}, view=view)


async def test_refusal_has_etcds_words(etcd: EtcdServer) -> None:
    async with client(etcd.url) as connected:
        with pytest.raises(EtcdRefusedError, match="key is not provided"):
            await connected.call("/v3/kv/range", RangeRequest(b""), RangeResponse)


async def test_certificates(tmp_path: Path, certificates: Certificates, root: str, make: MakeEtcd) -> None:
    c = certificates
    tls = ("--cert-file", c.server, "--key-file", c.server, "--trusted-ca-file", c.ca, "--client-cert-auth")
    with EtcdServer(tmp_path, tls=tls) as server:
        known: dict[str, Any] = {"auth_ca": c.ca, "auth_client_cert": c.client, "auth_client_key": c.client}
        owner, watch = make(server, **known), make(server, **known).watch("")
        await owner.register("k", b"v")
        await follow(watch, {"k": b"v"})
        for wrong in ({}, {"auth_ca": c.ca}, known | {"auth_ca": None}):
            with pytest.raises(ConfigError, match="cannot be registered in etcd"):
                await make(server, register_timeout_s=0.5, **wrong).register("l", b"v")


def add_users(server: EtcdServer, name: str, password: str, *, prefix: str) -> None:
    """From here on, etcd wants everybody to log in; the user may read and write `prefix`."""
    permission = {
        "permType": "READWRITE",
        "key": base64.b64encode(prefix.encode()).decode(),
        "range_end": base64.b64encode((prefix[:-1] + chr(ord(prefix[-1]) + 1)).encode()).decode(),
    }
    requests: tuple[tuple[str, dict[str, Any]], ...] = (
        ("user/add", {"name": "root", "password": secrets.token_hex(8)}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("role/add", {"name": "fleet"}),
        ("role/grant", {"name": "fleet", "perm": permission}),
        ("user/add", {"name": name, "password": password}),
        ("user/grant", {"user": name, "role": "fleet"}),
        ("enable", {}),
    )
    for path, request in requests:
        body = json.dumps(request).encode()
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/v3/auth/{path}", body), timeout=10).close()


@asynccontextmanager
async def client(endpoints: str) -> AsyncIterator[EtcdClient]:
    made = EtcdClient(EtcdConfig(endpoints=endpoints), timeout_s=2)
    yield made
    await made.close()


def reply(status: int, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    return b"HTTP/1.1 %d Status\r\ncontent-length: %d\r\n\r\n%s" % (status, len(content), content)


@asynccontextmanager
async def answering(answer: Callable[[bytes], bytes]) -> AsyncIterator[str]:
    """The URL of a server that gives one answer to each connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(request))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
