"""What a peer gets that asks for too much, and that its neighbours do not notice."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import uvloop

from dynamo.errors import OverloadedError, RequestTooLargeError
from dynamo.runtime.codec import Call, End
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane import limits
from dynamo.runtime.request_plane.tcp import TcpPlane
from dynamo.testing import eventually, run_strictly, within
from dynamo.testing.request_plane.connections import Gate
from dynamo.testing.request_plane.raw_peer import RawPeer, call_message, connected
from dynamo.testing.request_plane.service import call, collect, serving


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


async def end_of(peer: RawPeer, stream_id: int) -> str | None:
    """The code of the error with which a stream ends; None: none."""
    while True:
        for message in await peer.frame():
            if isinstance(message, End) and message.stream_id == stream_id:
                return message.error.code if message.error is not None else None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"endpoint": "e" * 2000}, "request_too_large"),
        ({"request_id": "r" * 2000}, "request_too_large"),
        ({"traceparent": "t" * 2000}, "request_too_large"),
        ({"metadata": {"key": "v" * (64 << 10)}}, "request_too_large"),
        ({"metadata": {f"{number}": "" for number in range(1 << 16)}}, "request_too_large"),
        ({"timeout_s": float("nan")}, "invalid_request"),
        ({"timeout_s": float("inf")}, None),
        ({"timeout_s": 1e300}, None),
        ({"window_bytes": 2**63}, None),
        ({"stream_id": -5}, None),
        ({"metadata": {"key": "v" * 1000}, "request_id": "r" * 1000, "timeout_s": 1e8}, None),
    ],
)
@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_one_call_is_refused_and_no_other(changes: dict[str, Any], code: str | None, loop_factory: Any) -> None:
    async def run() -> None:
        async with serving(TcpPlane(), echo) as service, connected(service.listener.address) as peer:
            peer.greet(service.listener.address)
            asked: Call = msgspec.structs.replace(call_message(1, "echo"), **changes)
            peer.send(asked, call_message(2, "echo"))
            ends: dict[int, str | None] = {}
            while len(ends) < 2:
                ends |= {
                    message.stream_id: message.error.code if message.error is not None else None
                    for message in await peer.frame()
                    if isinstance(message, End)
                }
            assert ends == {asked.stream_id: code, 2: None}

    run_strictly(run(), loop_factory)


async def test_streams_of_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STREAMS_MAX", 3)
    gate = Gate()
    async with serving(TcpPlane(), gate.wait, echo) as service, connected(service.listener.address) as peer:
        peer.greet(service.listener.address)
        peer.send(*(call_message(number, "wait") for number in range(4)))
        assert await end_of(peer, 3) == OverloadedError.code
        assert await collect(call(await service.connect(), "echo", 1)) == [1]  # another has a count of its own
        gate.opened.set()
        assert await end_of(peer, 2) is None
        peer.send(call_message(9, "echo"))
        assert await end_of(peer, 9) is None


async def test_connections_of_a_listener(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 2)
    async with serving(TcpPlane(), echo) as service:
        first, second = await service.connect(), await service.connect()
        for channel in (first, second):
            assert await collect(call(channel, "echo", 1)) == [1]
        for _ in range(3):
            async with connected(service.listener.address) as peer:
                with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                    await peer.frame()
        assert sum("refused" in record.message for record in caplog.records) == 1
        assert await collect(call(first, "echo", 1)) == [1]
        await within(second.close())
        await eventually(lambda: len(service.listener._connections) == 1)  # type: ignore[attr-defined]
        assert await collect(call(await service.connect(), "echo", 1)) == [1]


@pytest.mark.parametrize(
    "context",
    [Context("r" * 2000), Context("r", {"key": "v" * (64 << 10)})],
    ids=["id", "metadata"],
)
async def test_caller_is_told_before_anything_is_sent(context: Context) -> None:
    async with serving(TcpPlane(), echo) as service:
        channel = await service.connect()
        with pytest.raises(RequestTooLargeError):
            call(channel, "echo", 1, context)
        assert await collect(call(channel, "echo", 1)) == [1]


async def test_strangers_that_say_nothing_do_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 0.02)
    async with serving(TcpPlane(), echo) as service, connected(service.listener.address) as peer:
        assert b"introduce" in await peer.rest()
        await eventually(lambda: not service.listener._connections)  # type: ignore[attr-defined]
