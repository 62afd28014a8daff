"""Connections that are watched: silence at either end, and what only looks like it."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from dynamo.errors import UnreachableError, WorkerStalledError
from dynamo.runtime.channels import Channels, Heartbeat
from dynamo.runtime.codec import (
    PROTOCOL_VERSION,
    Call,
    End,
    FrameReader,
    Hello,
    Item,
    Message,
    Ping,
    Pong,
    Stop,
    encode_frame,
)
from dynamo.runtime.request_plane.base import Address, Channel
from dynamo.runtime.request_plane.tcp import TcpPlane
from dynamo.testing import eventually, run_strictly, within
from dynamo.testing.request_plane.connections import Gate
from dynamo.testing.request_plane.raw_peer import RawPeer, call_message, connected, listening
from dynamo.testing.request_plane.service import call, collect, failure, serving

FAST = Heartbeat(interval_s=0.02, stall_s=0.1)
HELD_UP_S = 0.4  # far longer than a silence may last


@contextlib.asynccontextmanager
async def watched(address: Address, heartbeat: Heartbeat = FAST) -> AsyncIterator[tuple[Channels, Channel]]:
    channels = Channels(TcpPlane(), heartbeat)
    try:
        yield channels, await channels.get(address)
    finally:
        await within(channels.close())


class MuteWorker:
    """Reads, but says nothing after its greeting until it is told to."""

    def __init__(self, *first: Message) -> None:
        self._first = first
        self.wakes = asyncio.Event()
        self.heard: list[Message] = []

    async def serve(self, peer: RawPeer) -> None:
        if self._first:
            peer.send(*self._first)
        waking = asyncio.create_task(self._wake(peer))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                for message in await peer.frame():
                    self.heard.append(message)
                    if type(message) is Ping and self.wakes.is_set():
                        peer.send(Pong())
        waking.cancel()

    async def _wake(self, peer: RawPeer) -> None:
        await self.wakes.wait()
        peer.send(Pong())


@pytest.mark.parametrize("first", [(), (Hello(PROTOCOL_VERSION),)], ids=["never greets", "greets"])
async def test_silent_worker(first: tuple[Message, ...]) -> None:
    worker = MuteWorker(*first)
    async with listening(worker.serve) as address, watched(address) as (channels, channel):
        started_s = time.monotonic()
        assert isinstance(await failure(call(channel, "anything")), WorkerStalledError)
        assert time.monotonic() - started_s > FAST.stall_s / 2
        await eventually(lambda: channels.is_stalled(address))
        with pytest.raises(UnreachableError):
            await channels.get(address)
        await eventually(lambda: Stop(1, kill=True) in worker.heard)  # it waits there until the worker reads it
        assert sum(type(message) is Ping for message in worker.heard) <= 2  # they do not pile up

        worker.wakes.set()
        await eventually(lambda: channel.usable)
        assert not channels.is_stalled(address)  # at once, not after the next beat
        assert await channels.get(address) is channel
        await eventually(lambda: not channels.any_quiet)


async def test_quiet_before_it_is_stalled() -> None:
    worker = MuteWorker()
    async with (
        listening(worker.serve) as address,
        watched(address, Heartbeat(interval_s=0.02, stall_s=60)) as (
            channels,
            channel,
        ),
    ):
        assert not channel.quiet
        await eventually(lambda: channels.is_quiet(address))
        assert channel.usable  # if there is no other
        worker.wakes.set()
        await eventually(lambda: not channel.quiet)
        assert not channels.is_quiet(address)  # at once, not after the next beat
        await eventually(lambda: not channels.any_quiet)


async def test_only_the_silent_one_is_stalled() -> None:
    gate, mute = Gate(), MuteWorker()
    async with (
        serving(TcpPlane(), gate.wait) as service,
        listening(mute.serve) as address,
        watched(address) as (channels, channel),
    ):
        neighbour = await channels.get(service.listener.address)
        stream = call(neighbour, "wait")
        await eventually(lambda: channel.stalled)
        assert neighbour.usable
        gate.opened.set()
        assert await collect(stream) == ["started", "done"]


async def test_calls_of_a_retired_connection_are_watched_too() -> None:
    mute = MuteWorker()
    async with listening(mute.serve) as address, watched(address) as (channels, channel):
        reply = call(channel, "anything")
        channels.forget(address)
        assert isinstance(await failure(reply), WorkerStalledError)
        await eventually(lambda: channel.lost)


async def test_no_heartbeat() -> None:
    mute = MuteWorker()
    off = Heartbeat(interval_s=0.0, stall_s=0.0)
    async with listening(mute.serve) as address, watched(address, off) as (_, channel):
        kept = call(channel, "anything")
        await eventually(lambda: len(mute.heard) == 2)
        assert [type(message) for message in mute.heard] == [Hello, Call]
        await kept.aclose()


class PunctualWorker:
    """Answers every ping from a thread of its own, whatever this process's event loop does."""

    def __init__(self) -> None:
        self._sock = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Address:
        self._thread.start()
        return Address(tcp_host="127.0.0.1", tcp_port=self._sock.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._sock.close()

    def _serve(self) -> None:
        connection, _ = self._sock.accept()
        frames = FrameReader()
        with connection:
            connection.sendall(encode_frame([Hello(PROTOCOL_VERSION)]))
            while data := connection.recv(1 << 16):
                for message in frames.feed(data):
                    if type(message) is Ping:
                        connection.sendall(encode_frame([Pong()]))


LOOPS = pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


@LOOPS
def test_being_held_up_is_no_silence_of_the_worker(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def run(address: Address) -> None:
        judged = 0
        async with watched(address) as (_, channel):
            kept = call(channel, "anything")
            for _ in range(3):
                time.sleep(HELD_UP_S)  # noqa: ASYNC251 - that is the point
                for _ in range(20):
                    await asyncio.sleep(FAST.interval_s / 10)
                    judged += channel.stalled
            await kept.aclose()
        assert not judged

    with PunctualWorker() as address:
        run_strictly(run(address), loop_factory)


def hold_up_in_a_read(first: Callable[[], None]) -> None:
    """Holds the event loop up in a place after which it may look at its timers before it reads anything."""
    loop, (near, far) = asyncio.get_running_loop(), socket.socketpair()

    def on_data() -> None:
        loop.remove_reader(near)
        near.close()
        far.close()
        first()
        time.sleep(HELD_UP_S)

    loop.add_reader(near, on_data)
    far.send(b"x")


async def test_silent_caller_frees_the_handler() -> None:
    gate = Gate()
    async with serving(TcpPlane(), gate.wait) as service, connected(service.listener.address) as peer:
        peer.greet(service.listener.address)
        peer.send(call_message(1, "wait"), Ping(0.05))
        await within(gate.closed.wait())
        with contextlib.suppress(ConnectionError):
            await peer.rest()  # it is cut off


async def test_caller_that_has_never_pinged_may_be_silent() -> None:
    """As one with the heartbeat turned off."""
    gate = Gate()
    async with serving(TcpPlane(), gate.wait) as service, connected(service.listener.address) as peer:
        peer.greet(service.listener.address)
        peer.send(call_message(1, "wait"))
        assert [type(message) for message in await peer.frame()] == [Hello]
        assert [type(message) for message in await peer.frame()] == [Item]
        await asyncio.sleep(0.1)
        gate.opened.set()
        assert [type(message) for message in await peer.frame()] == [Item, End]


@LOOPS
def test_being_held_up_is_no_silence_of_the_caller(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def run() -> None:
        gate = Gate()
        async with serving(TcpPlane(), gate.wait) as service, connected(service.listener.address) as peer:
            peer.greet(service.listener.address)
            peer.send(call_message(1, "wait"), Ping(0.1))
            hold_up_in_a_read(lambda: peer.send(Ping(60)))  # in time, but it has to wait
            heard: list[type[Message]] = []
            while heard.count(Pong) < 2:
                heard += [type(message) for message in await peer.frame()]
            gate.opened.set()
            assert [type(message) for message in await peer.frame()] == [Item, End]

    run_strictly(run(), loop_factory)
