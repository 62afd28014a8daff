"""Addresses: what is listened on, what is announced, and which way a caller takes."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import uvloop

from dynamo.errors import ConfigError, ConnectionLostError, NotFoundError
from dynamo.runtime.request_plane import tcp
from dynamo.runtime.request_plane.base import Address
from dynamo.runtime.request_plane.call import PayloadHandler
from dynamo.runtime.request_plane.caller import CallerConnection
from dynamo.runtime.request_plane.tcp import TcpPlane, host_id
from dynamo.testing import run_strictly, within
from dynamo.testing.descriptors import open_descriptors
from dynamo.testing.request_plane.service import call, collect, serving


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


def _nothing_is_served(endpoint: str) -> PayloadHandler:
    raise NotFoundError(endpoint)


def family(channel: CallerConnection) -> int:
    sock = channel.raw_socket()
    assert sock is not None
    return int(sock.family)


async def test_announces_both_ways_on_one_host() -> None:
    async with serving(TcpPlane(), echo) as service:
        address = service.listener.address
        assert address.tcp_host == "127.0.0.1"
        assert address.tcp_port
        assert address.unix
        assert address.host_id == host_id()
        assert len(address.secret) == 32


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, socket.AF_UNIX),
        ({"host_id": "another boot"}, socket.AF_INET),
        ({"unix": "a-name-that-nobody-listens-on"}, socket.AF_INET),
        ({"unix": None}, socket.AF_INET),
    ],
)
async def test_caller_takes_the_best_way(changes: dict[str, str | None], expected: socket.AddressFamily) -> None:
    async with serving(TcpPlane(), echo) as service:
        channel = await TcpPlane().connect(msgspec.structs.replace(service.listener.address, **changes))
        assert family(channel) == expected
        assert await collect(call(channel, "echo", 1)) == [1]
        await within(channel.close())


async def test_sandbox_without_unix_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_unix(family: int = -1, *rest: Any, **named: Any) -> socket.socket:
        if family == socket.AF_UNIX:
            raise PermissionError(1, "not here")
        return real(family, *rest, **named)

    monkeypatch.setattr("socket.socket", without_unix)
    async with serving(TcpPlane(), echo) as service:
        assert service.listener.address.unix is None
        assert await collect(call(await service.connect(), "echo", 1)) == [1]


async def test_given_port_is_used_and_can_be_used_again_at_once() -> None:
    async with serving(TcpPlane(), echo) as service:
        port = service.listener.address.tcp_port
        assert port is not None
        assert await collect(call(await service.connect(), "echo", 1)) == [1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            await TcpPlane(port=port).listen(_nothing_is_served)
    async with serving(TcpPlane(port=port), echo) as service:
        assert service.listener.address.tcp_port == port


async def test_others_are_told_where_to_come_in() -> None:
    """As behind a proxy, which a Unix socket would lead around."""
    async with serving(TcpPlane(advertised=("proxy.example", 7)), echo) as service:
        address = service.listener.address
        assert (address.tcp_host, address.tcp_port, address.unix) == ("proxy.example", 7, None)


@pytest.mark.parametrize(
    ("host", "port", "match"),
    [("127.0.0.1", 65536, "65536"), ("127.0.0.1", -1, "-1"), ("no such host", 0, "no such host")],
)
@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_impossible_addresses(host: str, port: int, match: str, loop_factory: Any) -> None:
    async def listen() -> None:
        with pytest.raises(ConfigError, match=match):
            await TcpPlane(host, port).listen(_nothing_is_served)

    run_strictly(listen(), loop_factory)


async def test_every_interface_is_announced_as_one_that_others_can_reach() -> None:
    async with serving(TcpPlane("0.0.0.0"), echo) as service:
        address = service.listener.address
        assert address.tcp_host not in ("0.0.0.0", None)
        channel = await TcpPlane().connect(msgspec.structs.replace(address, unix=None))
        assert await collect(call(channel, "echo", 1)) == [1]
        await within(channel.close())


async def test_what_the_host_is_called_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's installer lets a host's name stand for 127.0.1.1."""
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    async with serving(TcpPlane("0.0.0.0"), echo) as service:
        assert service.listener.address.tcp_host != "127.0.1.1"


async def test_both_ends_find_out_that_a_host_has_vanished() -> None:
    async with serving(TcpPlane(), echo) as service:
        caller = await TcpPlane().connect(msgspec.structs.replace(service.listener.address, unix=None))
        assert await collect(call(caller, "echo", 1)) == [1]
        [callee] = service.listener._connections  # type: ignore[attr-defined]
        for sock in (caller.raw_socket(), callee.raw_socket()):
            assert sock is not None
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
        await within(caller.close())


async def test_worker_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that swallows packets."""
    monkeypatch.setattr(tcp, "CONNECT_TIMEOUT_S", 0.02)

    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never)
    with pytest.raises(ConnectionLostError, match=r"192\.0\.2\.1:9: timed out"):
        await within(TcpPlane().connect(Address(tcp_host="192.0.2.1", tcp_port=9)))


async def test_address_of_another_transport() -> None:
    with pytest.raises(ConnectionLostError, match="socket"):
        await TcpPlane().connect(Address(inproc="x"))


async def test_nothing_is_left_open() -> None:
    before = open_descriptors()
    for _ in range(10):
        async with serving(TcpPlane(), echo) as service:
            for channel in (await service.connect(), await service.connect()):
                assert await collect(call(channel, "echo", 1)) == [1]
    assert open_descriptors() == before
