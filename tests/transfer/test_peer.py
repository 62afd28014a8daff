"""The way to a peer, while it is looked for."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from dynamo.errors import ConnectionLostError, DeadlineExceededError, DynamoError, RequestCancelledError
from dynamo.testing import eventually, within
from dynamo.transfer import Agent, backends, tcp


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowly:
    """Connecting takes as long as it likes."""

    begun: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    made: list[tcp.TcpLink] = field(default_factory=list)

    def connect(self, offer: Any, *_: Any) -> tcp.TcpLink:
        self.begun.set()
        assert self.go_on.wait(10)
        self.made.append(tcp.TcpLink(offer))
        return self.made[-1]


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slowly]:
    made = Slowly()
    monkeypatch.setattr(backends, "TcpLink", made.connect)
    yield made
    made.go_on.set()


@pytest.mark.parametrize(("cancel", "error"), [(False, DeadlineExceededError), (True, RequestCancelledError)])
async def test_transfers_end_though_a_connection_takes_long(
    slowly: Slowly, cancel: bool, error: type[DynamoError]
) -> None:
    async with Agent("a", ["tcp"]) as near, Agent("b", ["tcp"]) as far:
        ours, theirs = near.register(bytearray(8)), far.register(bytearray(8))
        near.add_peer(far.metadata())
        transfers = [near.read(ours.all(), theirs.all(), timeout_s=10 if cancel else 0.1) for _ in range(3)]
        await within(asyncio.to_thread(slowly.begun.wait))
        if cancel:
            for transfer in transfers:
                transfer.cancel()
        for transfer in transfers:
            with pytest.raises(error):
                await within(transfer)
        slowly.go_on.set()
        await eventually(lambda: bool(slowly.made) and slowly.made[0]._closed)
        await within(near.read(ours.all(), theirs.all()))


async def test_nobody_connects_to_a_peer_that_was_removed(slowly: Slowly) -> None:
    async with Agent("a", ["tcp"]) as near, Agent("b", ["tcp"]) as far:
        ours, theirs = near.register(bytearray(8)), far.register(bytearray(8))
        near.add_peer(far.metadata())
        transfers = [near.read(ours.all(), theirs.all()) for _ in range(20)]
        await within(asyncio.to_thread(slowly.begun.wait))
        near.remove_peer("b")
        slowly.go_on.set()
        for transfer in transfers:
            with pytest.raises(ConnectionLostError, match="was removed"):
                await within(transfer)
        assert len(slowly.made) == 1
