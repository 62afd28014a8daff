import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import pytest
import trustme
import uvloop

from dynamo.runtime import acceptor
from dynamo.runtime.acceptor import ARRIVALS_PER_TURN_MAX, Acceptor
from dynamo.runtime.listening_socket import bind
from dynamo.testing import run_strictly, within

both_loops = pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class Greeter(asyncio.Protocol):
    """Says hello, remembers its connections."""

    transports: list[asyncio.Transport]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transports.append(cast("asyncio.Transport", transport))
        self.transports[-1].write(b"hello")


def greeter() -> type[Greeter]:
    return type("Greeter", (Greeter,), {"transports": []})


class OutOfDescriptors(socket.socket):
    """Fails at the first connection."""

    failures = 1

    def accept(self) -> Any:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


@both_loops
def test_connections_are_made_without_delay_of_small_packets(loop_factory: LoopFactory) -> None:
    async def run() -> None:
        factory, sock = greeter(), bind("127.0.0.1", 0)
        accepting = Acceptor(sock, factory)
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        assert await within(reader.readexactly(5)) == b"hello"
        accepted = factory.transports[0].get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await within(accepting.stop())
        factory.transports[0].close()
        assert await within(reader.read()) == b""
        writer.close()
        await within(writer.wait_closed())

    run_strictly(run(), loop_factory)


@both_loops
def test_after_stop_everybody_has_been_refused_or_served(loop_factory: LoopFactory) -> None:
    """Whatever the moment: a caller that is neither would wait for ever."""

    async def run() -> None:
        for turns in range(6):
            factory, sock = greeter(), bind("127.0.0.1", 0)
            accepting = Acceptor(sock, factory)
            client = socket.create_connection(sock.getsockname())
            for _ in range(turns):
                await asyncio.sleep(0)
            await within(accepting.stop())
            await within(accepting.stop())
            for transport in factory.transports:
                transport.close()
            reader, writer = await asyncio.open_connection(sock=client)
            with contextlib.suppress(ConnectionResetError):
                assert await within(reader.read()) in (b"", b"hello")
            writer.close()

    run_strictly(run(), loop_factory)


@both_loops
def test_goes_on_after_running_out_of_descriptors(loop_factory: LoopFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "_RETRY_S", 0.01)

    async def run() -> None:
        factory = greeter()
        with bind("127.0.0.1", 0) as plain:
            sock = OutOfDescriptors(fileno=plain.detach())
        accepting = Acceptor(sock, factory)
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        assert await within(reader.readexactly(5)) == b"hello"
        await within(accepting.stop())
        factory.transports[0].close()
        writer.close()
        await within(writer.wait_closed())

    run_strictly(run(), loop_factory)


class Counting(socket.socket):
    """Counts the connections that it has accepted."""

    accepted = 0

    def accept(self) -> Any:
        connection = super().accept()
        self.accepted += 1
        return connection


@both_loops
def test_a_crowd_is_let_in_within_few_turns(loop_factory: LoopFactory) -> None:
    """The turns of a busy loop are long. But the crowd does not get one for itself."""
    crowd = 3 * ARRIVALS_PER_TURN_MAX

    async def run() -> None:
        factory = greeter()
        with bind("127.0.0.1", 0) as plain:
            sock = Counting(fileno=plain.detach())
        accepting = Acceptor(sock, factory)
        clients = [socket.create_connection(sock.getsockname()) for _ in range(crowd)]
        accepted = [0]
        for _ in range(10):
            await asyncio.sleep(0)
            accepted.append(sock.accepted)
        await within(accepting.stop())
        for transport in factory.transports:
            transport.close()
        for client in clients:
            client.close()
        assert len(factory.transports) == crowd
        assert max(after - before for before, after in pairwise(accepted)) == ARRIVALS_PER_TURN_MAX

    run_strictly(run(), loop_factory)


@both_loops
def test_tls(loop_factory: LoopFactory) -> None:
    """A connection is made when the handshake is done; those whose handshake goes on are ended by stop()."""
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)

    async def run() -> None:
        factory, sock = greeter(), bind("127.0.0.1", 0)
        accepting = Acceptor(sock, factory, server)
        silent, silent_writer = await asyncio.open_connection(*sock.getsockname())
        reader, writer = await asyncio.open_connection(*sock.getsockname(), ssl=client)
        assert await within(reader.readexactly(5)) == b"hello"
        assert len(factory.transports) == 1
        await within(accepting.stop())
        assert await within(silent.read()) == b""
        factory.transports[0].close()
        assert await within(reader.read()) == b""
        for each in (writer, silent_writer):
            each.close()
            await within(each.wait_closed())

    run_strictly(run(), loop_factory)


async def test_handshakes_at_a_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "_HANDSHAKES_MAX", 2)
    sock = bind("127.0.0.1", 0)
    accepting = Acceptor(sock, greeter(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
    streams = [await asyncio.open_connection(*sock.getsockname()) for _ in range(3)]
    assert await within(streams[2][0].read()) == b""
    assert not streams[0][0].at_eof()
    await within(accepting.stop())
    for reader, writer in streams:
        assert await within(reader.read()) == b""
        writer.close()
        await within(writer.wait_closed())
