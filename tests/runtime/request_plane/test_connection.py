"""The protocol on the wire: what it sends, and what it takes from peers that are broken, old or hostile."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo.errors import ConnectionLostError, OverloadedError, ProtocolError
from dynamo.runtime.codec import (
    DEFAULT_MAX_FRAME_BYTES,
    HANDSHAKE_FRAME_BYTES,
    PROTOCOL_VERSION,
    Credit,
    End,
    GoAway,
    Hello,
    Item,
    Message,
    Stop,
    encode_frame,
)
from dynamo.runtime.component import payload_handler
from dynamo.runtime.request_plane import connection, limits, listener
from dynamo.runtime.request_plane.listener import ConnectionListener
from dynamo.runtime.request_plane.tcp import TcpPlane
from dynamo.testing import eventually, within
from dynamo.testing.request_plane.connections import Gate
from dynamo.testing.request_plane.flow import Producer
from dynamo.testing.request_plane.raw_peer import RawPeer, call_message, connected, listening
from dynamo.testing.request_plane.service import Service, call, collect, failure, serving


class Steps:
    """Streams that move together, as those of an engine do."""

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self._waiting = 0
        self._stepped = asyncio.Condition()

    async def generate(self, request: int) -> AsyncIterator[int]:
        for number in range(request):
            async with self._stepped:
                self._waiting += 1
                if self._waiting == self._streams:
                    self._waiting = 0
                    self._stepped.notify_all()
                else:
                    await self._stepped.wait()
            yield number


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with serving(TcpPlane(), echo) as service:
        yield service
        channel = await service.connect()  # whatever a test has done, others are served
        assert await collect(call(channel, "echo", "unharmed")) == ["unharmed"]


async def test_caller_that_reads_nothing_of_what_it_asks_for(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pongs and refusals need no credit: what waits to be read would grow for as long as it asks."""
    monkeypatch.setattr(limits, "UNREAD_BYTES_MAX", 1 << 20)
    async with connected(service.listener.address) as peer:
        peer.greet(service.listener.address)

        async def ask() -> None:
            while True:
                peer.send(*(call_message(n, "e" * 1000) for n in range(32)))
                await within(peer.writer.drain())

        with pytest.raises(ConnectionError):
            await ask()


async def test_one_frame_per_step() -> None:
    streams, steps = 32, 10
    async with serving(TcpPlane(), Steps(streams).generate) as service, connected(service.listener.address) as peer:
        peer.greet(service.listener.address)
        peer.send(*(call_message(n, "generate", steps) for n in range(streams)))
        assert [type(m) for m in await peer.frame()] == [Hello]
        frames: list[list[type[Message]]] = []
        while sum(frame.count(End) for frame in frames) < streams:
            frames.append([type(message) for message in await peer.frame()])
        assert sum(frame.count(Item) for frame in frames) == streams * steps
        assert len(frames) <= 2 * steps


async def test_a_large_step_leaves_in_several_frames() -> None:
    """So that the peer begins while the rest is made."""
    streams, steps = 100, 3
    async with serving(TcpPlane(), Steps(streams).generate) as service, connected(service.listener.address) as peer:
        peer.greet(service.listener.address)
        peer.send(*(call_message(n, "generate", steps) for n in range(streams)))
        sizes: list[int] = []
        while sum(sizes) < 1 + streams * (steps + 1):  # the greeting, the items, the ends
            sizes.append(len(await peer.frame()))
        assert max(sizes) == 32


async def test_calls_of_one_turn_share_a_frame() -> None:
    received: list[int] = []

    async def worker(peer: RawPeer) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                received.append(len(await peer.frame()))

    async with listening(worker) as address:
        channel = await TcpPlane().connect(address)
        replies = [call(channel, "anything") for _ in range(30)]
        await within(channel.close())
        for reply in replies:
            assert isinstance(await failure(reply), ConnectionLostError)
    assert received == [1, 30]


async def test_calls_do_not_pile_up_for_a_worker_that_reads_nothing() -> None:
    """As one that is stopped."""
    done = asyncio.Event()

    async def worker(peer: RawPeer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await done.wait()

    async with listening(worker) as address:
        channel = await TcpPlane().connect(address)
        calls = [call(channel, "anything", bytes(8 << 20)) for _ in range(10)]
        assert isinstance(await failure(calls[-1]), OverloadedError)
        done.set()
        await within(channel.close())
        assert isinstance(await failure(calls[0]), ConnectionLostError)


@pytest.mark.parametrize("size_bytes", [HANDSHAKE_FRAME_BYTES + 1, DEFAULT_MAX_FRAME_BYTES + 1, 2**32 - 1])
async def test_oversized_first_frame(service: Service, size_bytes: int) -> None:
    async with connected(service.listener.address) as peer:
        peer.writer.write(size_bytes.to_bytes(4, "big"))
        assert b"over the limit" in await peer.rest()


async def test_oversized_frame_after_the_handshake(service: Service) -> None:
    async with connected(service.listener.address) as peer:
        peer.greet(service.listener.address)
        peer.writer.write((DEFAULT_MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
        assert b"over the limit" in await peer.rest()


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [call_message(1, "echo")],
        [Credit(1, 5), Hello(PROTOCOL_VERSION)],
        [Hello(PROTOCOL_VERSION, "x")],
        [Hello(PROTOCOL_VERSION, "geheim\u00fc")],
    ],
    ids=["nothing", "call", "credit", "wrong secret", "non-ascii secret"],
)
async def test_callers_that_do_not_introduce_themselves(service: Service, messages: list[Message]) -> None:
    async with connected(service.listener.address) as peer:
        peer.send(*messages)
        if not messages:
            peer.send(GoAway())
        frames = await peer.rest()
        assert b"protocol_error" in frames or b"unauthorized" in frames


@pytest.mark.parametrize("message", [Item(1, call_message(1, "").payload), End(1), Hello(PROTOCOL_VERSION)])
async def test_messages_that_no_caller_sends(service: Service, message: Message) -> None:
    async with connected(service.listener.address) as peer:
        peer.greet(service.listener.address)
        peer.send(message)
        assert b"must not send" in await peer.rest()


async def test_stream_id_in_use() -> None:
    producer = Producer()
    async with serving(TcpPlane(), producer.produce) as service, connected(service.listener.address) as peer:
        peer.greet(service.listener.address)
        peer.send(call_message(1, "produce", 1000), call_message(1, "produce", 1000))
        assert b"already open" in await peer.rest()
        await within(producer.closed.wait())


async def test_messages_for_streams_that_have_ended(service: Service) -> None:
    async with connected(service.listener.address) as peer:
        peer.greet(service.listener.address)
        peer.send(call_message(1, "echo", "x"))
        while End(1) not in await peer.frame():
            pass
        peer.send(Credit(1, 100), Stop(1, False), Stop(1, True), Stop(99, True), call_message(2, "echo"))
        while End(2) not in await peer.frame():
            pass


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1])
async def test_caller_of_another_version(service: Service, version: int) -> None:
    async with connected(service.listener.address) as peer:
        peer.send(Hello(version, service.listener.address.secret))
        assert b"version" in await peer.rest()


@pytest.mark.parametrize(
    "answer",
    [
        encode_frame([Hello(PROTOCOL_VERSION + 1)]),
        encode_frame([Hello(PROTOCOL_VERSION), Stop(1, True)]),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x00\x00\x00\x01\xc1",
    ],
    ids=["version", "caller's message", "http", "no msgpack"],
)
async def test_worker_that_speaks_something_else(answer: bytes) -> None:
    async def worker(peer: RawPeer) -> None:
        await peer.frame()
        await peer.frame()
        peer.writer.write(answer)
        await peer.rest()

    async with listening(worker) as address:
        channel = await TcpPlane().connect(address)
        assert isinstance(await failure(call(channel, "anything")), ProtocolError)
        assert not channel.usable
        await within(channel.close())


async def test_silent_caller_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 0.02)
    async with serving(TcpPlane(), echo) as service, connected(service.listener.address) as silent:
        channel = await service.connect()
        assert b"introduce" in await silent.rest()
        assert await collect(call(channel, "echo", 1)) == [1]


async def test_random_bytes_harm_nobody(service: Service) -> None:
    rng = random.Random(1)
    channel = await service.connect()
    for _ in range(60):
        async with connected(service.listener.address) as peer:
            if greeted := rng.random() < 0.7:
                peer.greet(service.listener.address)
            body = rng.randbytes(rng.randrange(1, 40))
            frame = bytearray(len(body).to_bytes(4, "big") + body)
            if rng.random() < 0.5:  # a good frame with some bits turned
                frame = bytearray(
                    encode_frame([call_message(7, "echo", {"k": [1, "x"]}), Credit(7, 5), Stop(7, greeted)])
                )
                for _ in range(rng.randrange(1, 4)):
                    frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
            peer.writer.write(frame)
            if rng.random() < 0.5:
                peer.writer.write_eof()
                await peer.rest()
        assert await collect(call(channel, "echo", 1)) == [1]


async def test_peer_that_reads_nothing_cannot_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CLOSE_TIMEOUT_S", 0.05)
    producer = Producer(bytes(16 << 20))  # far more than the kernel buffers
    async with serving(TcpPlane(), producer.produce) as service, connected(service.listener.address) as peer:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        peer.greet(service.listener.address)
        peer.send(call_message(1, "produce", 5))
        await eventually(lambda: producer.produced > 0)
        await within(service.listener.drain(0))
        await within(service.listener.close())
        await within(producer.closed.wait())


async def test_unread_socket_bounds_what_is_produced() -> None:
    producers = Producer(bytes(1 << 20))
    async with serving(TcpPlane(), producers.produce) as service, connected(service.listener.address) as peer:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        peer.greet(service.listener.address)
        peer.send(*(call_message(n, "produce", 1000) for n in range(8)), *(Credit(n, 1 << 30) for n in range(8)))
        last = -1
        while producers.produced != last:
            last = producers.produced
            for _ in range(100):
                await asyncio.sleep(0)
        assert producers.produced < 40  # MiB: the kernel's buffers, ours, and an item of each stream


async def test_call_that_crosses_the_farewell_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller cannot know of the drain before it has heard of it, and must not lose calls for that."""
    monkeypatch.setattr(listener, "_HANG_UP_S", 0.05)
    gate = Gate()
    async with serving(TcpPlane(), gate.wait) as service, connected(service.listener.address) as peer:
        peer.greet(service.listener.address)
        assert await peer.frame() == [Hello(PROTOCOL_VERSION)]
        drain = asyncio.create_task(service.listener.drain(10))
        assert await peer.frame() == [GoAway()]
        peer.send(call_message(1, "wait"))
        assert [type(message) for message in await peer.frame()] == [Item]
        assert (await asyncio.wait([drain], timeout=0.1))[1] == {drain}
        gate.opened.set()
        assert [type(message) for message in await peer.frame()] == [Item, End]
        await within(drain)  # though this peer does not hang up


class Transport(asyncio.Transport):
    aborted = False

    def write(self, data: object) -> None:
        assert not self.aborted

    def close(self) -> None:
        raise AssertionError("would wait for a peer that nobody has talked to")

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize("accepted", ["before", "after"])
async def test_connection_that_is_made_while_the_listener_closes(accepted: str) -> None:
    closing = ConnectionListener(lambda _: payload_handler(echo), "secret")
    early = closing.accept() if accepted == "before" else None
    await within(closing.close())
    transport = Transport()
    (early or closing.accept()).connection_made(transport)
    assert transport.aborted
