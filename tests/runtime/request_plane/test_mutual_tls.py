"""The request plane over TLS: who gets through, and that nothing is left of who does not."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import uvloop

from dynamo.errors import ConnectionLostError, UnreachableError
from dynamo.runtime.credentials import NO_CREDENTIALS, Credentials
from dynamo.runtime.mutual_tls import MutualTls
from dynamo.runtime.request_plane.tcp import TcpPlane
from dynamo.testing import run_strictly, within
from dynamo.testing.request_plane.raw_peer import connected
from dynamo.testing.request_plane.service import call, collect, failure, serving
from tests.runtime.certificates import Authority

SECRET = b"known to both ends alone"
LOOPS = pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "theirs")


def without_certificate(credentials: Credentials) -> Credentials:
    assert credentials.tls is not None
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    return Credentials(secret=credentials.secret, tls=MutualTls(server=credentials.tls.server, client=client))


def outdated(credentials: Credentials) -> Credentials:
    assert credentials.tls is not None
    credentials.tls.client.minimum_version = ssl.TLSVersion.TLSv1_2
    credentials.tls.client.maximum_version = ssl.TLSVersion.TLSv1_2
    return credentials


@LOOPS
@pytest.mark.parametrize("secret", [None, SECRET], ids=["tls", "tls and secret"])
def test_processes_of_one_deployment(ours: Authority, secret: bytes | None, loop_factory: Any) -> None:
    async def run() -> None:
        async with serving(TcpPlane(credentials=ours.credentials(secret)), echo) as service:
            address = service.listener.address
            assert address.tls
            assert address.unix is None
            channel = await within(TcpPlane(credentials=ours.credentials(secret)).connect(address))
            large = bytes(3 << 20)
            assert await collect(call(channel, "echo", large)) == [large]
            await within(channel.close())

    run_strictly(run(), loop_factory)


@LOOPS
@pytest.mark.parametrize("stranger", ["no certificate", "another authority", "does not trust us", "old TLS"])
def test_strangers(ours: Authority, theirs: Authority, stranger: str, loop_factory: Any) -> None:
    credentials = {
        "no certificate": lambda: without_certificate(ours.credentials()),
        "another authority": lambda: theirs.credentials(trusts=ours),
        "does not trust us": lambda: ours.credentials(trusts=theirs),
        "old TLS": lambda: outdated(ours.credentials()),
    }[stranger]()

    async def run() -> None:
        plane = TcpPlane(credentials=ours.credentials())
        async with serving(plane, echo) as service:
            for _ in range(3):
                with pytest.raises(UnreachableError, match="cannot connect"):
                    await within(TcpPlane(credentials=credentials).connect(service.listener.address))
            assert not service.listener._connections  # type: ignore[attr-defined]
            assert await collect(call(await service.connect(), "echo", 1)) == [1]

    run_strictly(run(), loop_factory)


@pytest.mark.parametrize("only", ["caller", "worker"])
async def test_one_side_alone_speaks_tls(ours: Authority, only: str) -> None:
    caller, worker = ours.credentials(), NO_CREDENTIALS
    if only == "worker":
        caller, worker = worker, caller
    async with serving(TcpPlane(credentials=worker), echo) as service:
        with pytest.raises(UnreachableError, match="--request-plane-tls-cert"):
            await within(TcpPlane(credentials=caller).connect(service.listener.address))


async def test_discovery_that_denies_tls_is_not_believed(ours: Authority) -> None:
    async with serving(TcpPlane(credentials=ours.credentials()), echo) as service:
        address = msgspec.structs.replace(service.listener.address, tls=False)
        with pytest.raises(UnreachableError):
            await within(TcpPlane(credentials=ours.credentials()).connect(address))
        channel = await within(TcpPlane().connect(address))  # and who speaks no TLS is told nothing
        assert isinstance(await failure(call(channel, "echo", 1)), ConnectionLostError)


async def test_strangers_that_speak_no_tls_leave_nothing(ours: Authority) -> None:
    async with serving(TcpPlane(credentials=ours.credentials()), echo) as service:
        for first in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"):
            async with connected(service.listener.address) as peer:
                peer.writer.write(first)
                peer.writer.write_eof()
                await peer.rest()
        assert not service.listener._connections  # type: ignore[attr-defined]
        assert await collect(call(await service.connect(), "echo", 1)) == [1]


async def test_handshake_that_nobody_ends_does_not_hold_up_the_end(ours: Authority) -> None:
    plane = TcpPlane(credentials=ours.credentials())
    async with serving(plane, echo) as service, connected(service.listener.address):
        await within(service.listener.drain(1000))
        await within(service.listener.close())
