"""TCP beside what all backends do: what is on its way when a transfer ends, and connections that come too late."""

import asyncio
import contextlib
import socket
import threading
from array import array
from typing import Any

import pytest

from dynamo.errors import ConnectionLostError, DeadlineExceededError
from dynamo.testing import eventually, within
from dynamo.transfer import Agent, tcp
from dynamo.transfer.metadata import AgentMetadata, TcpOffer


def offer_of(agent: Agent) -> TcpOffer:
    offer = AgentMetadata.decode(agent.metadata()).tcp
    assert offer is not None
    return offer


async def test_a_write_that_was_given_up_writes_no_more_once_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, ended = threading.Event(), threading.Event()
    answer = tcp.TcpTarget._answer

    def answer_late(self: tcp.TcpTarget, stream: Any, request: Any) -> None:
        read_into = stream.read_into

        def read_late(vector: Any) -> None:
            assert go_on.wait(10)
            try:
                read_into(vector)
            finally:
                ended.set()

        stream.read_into = read_late
        answer(self, stream, request)

    async with Agent("a", ["tcp"]) as near, Agent("b", ["tcp"]) as far:
        ours, theirs = near.register(b"late"), far.register(bytearray(4))
        near.add_peer(far.metadata())
        await within(near.write(ours.all(), theirs.all()))  # the way is found: what comes now begins at once
        monkeypatch.setattr(tcp.TcpTarget, "_answer", answer_late)
        asyncio.get_running_loop().call_later(1.0, go_on.set)
        with pytest.raises(DeadlineExceededError):
            await within(near.write(ours.all(), theirs.all(), timeout_s=0.5))
        assert ended.is_set()


async def test_a_peer_that_hangs_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(tcp, "_FINISH_TIMEOUT_S", 0.1)
    monkeypatch.setattr(tcp.TcpTarget, "_answer", lambda *_: go_on.wait(10))
    async with Agent("a", ["tcp"]) as near, Agent("b", ["tcp"]) as far:
        ours, theirs = near.register(b"late"), far.register(bytearray(4))
        near.add_peer(far.metadata())
        with pytest.raises(DeadlineExceededError):
            await within(near.write(ours.all(), theirs.all(), timeout_s=0.1))
        go_on.set()


async def test_a_connection_that_comes_after_the_link_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Agent("a", ["tcp"]) as far:
        link = tcp.TcpLink(offer_of(far))
        made: list[socket.socket] = []
        create_connection = socket.create_connection

        def connect_and_close(*arguments: Any) -> socket.socket:
            made.append(create_connection(*arguments))
            link.close()
            return made[0]

        monkeypatch.setattr(socket, "create_connection", connect_and_close)
        first = link._take()
        with pytest.raises(ConnectionLostError, match="closed"):
            link._take()
        assert made[0].fileno() == -1
        first.close()


async def test_memory_is_not_held_for_a_peer_that_hangs() -> None:
    """Past the deadline that it has told of, its connection is closed."""
    async with Agent("a", ["tcp"]) as far:
        theirs = far.register(bytearray(64 << 20))
        with contextlib.closing(tcp.TcpLink(offer_of(far))) as link:
            stream = link._take()
            vector = array("Q", [theirs.address, theirs.size_bytes]).tobytes()
            stream.send(tcp._Request(False, ((theirs.id, theirs.key),), vector, 0.05))
            await eventually(lambda: not far._targets[0]._acceptor._sockets)  # type: ignore[attr-defined]
            stream.close()
