from collections.abc import Callable, Iterable
from typing import cast

from dynamo.kvbm import follower
from dynamo.kvbm.connection import Connection
from dynamo.kvbm.effects import Change
from dynamo.kvbm.follower import Follower, TierNews
from dynamo.kvbm.pool_shell import PoolShell
from dynamo.kvbm.storage.base import Stored
from dynamo.protocols.kvbm import PoolFigures, Reply, StorageTier, TierChanges
from dynamo.testing.waiting import eventually
from dynamo.tokens import hashes_from_bytes

HOST = StorageTier.HOST


class Told:
    """What somebody knows who heard the messages."""

    def __init__(self) -> None:
        self.names: set[int] = set()
        self.messages = 0

    def hear(self, message: TierChanges) -> None:
        self.messages += 1
        if message.reset:
            self.names = set()
        self.names -= set(hashes_from_bytes(message.removed))
        self.names |= set(hashes_from_bytes(message.stored))


def news_of(names: set[int]) -> TierNews:
    def snapshot(_: StorageTier) -> Iterable[Stored]:
        return [Stored(bytes([name % 256]), name) for name in names]

    return TierNews(HOST, snapshot)


def test_it_begins_with_all_there_is_then_tells_changes() -> None:
    there = {1, 2, 3}
    news, told = news_of(there), Told()
    assert news
    for message in news.take():
        told.hear(message)
    assert told.names == there
    assert not news
    news.add(Change(HOST, (4,), (1,)))
    for message in news.take():
        assert not message.reset
        told.hear(message)
    assert told.names == {2, 3, 4}


def test_an_empty_tier_is_told_too() -> None:
    assert list(news_of(set()).take()) == [TierChanges(tier=HOST, reset=True)]


def test_what_is_not_taken_is_merged() -> None:
    news, told = news_of({1}), Told()
    for message in news.take():
        told.hear(message)
    for _ in range(1000):
        news.add(Change(HOST, (5,), (1,)))
        news.add(Change(HOST, (1,), (5,)))
    for message in news.take():
        told.hear(message)
    assert (told.names, told.messages) == ({1}, 2)


def test_a_slow_follower_takes_a_long_account_in_parts() -> None:
    count = 3 * follower.NAMES_MAX + 1
    news, told = news_of(set(range(count))), Told()
    told.hear(next(news.take()))
    news.add(Change(HOST, (count + 1,), (0, count - 1)))  # one that was told, and one that was not
    while news:
        told.hear(next(news.take()))
    assert told.names == (set(range(1, count - 1)) | {count + 1})


def test_one_that_is_too_far_behind_is_told_all_anew() -> None:
    there = {1}
    news, told = news_of(there), Told()
    told.hear(next(news.take()))
    there.clear()
    there.add(9)
    news.add(Change(HOST, tuple(range(2, follower.WAITING_MAX + 3)), ()))
    for message in news.take():
        told.hear(message)
    assert told.names == {9}


class SlowConnection:
    """To a follower that reads one message and then no more until it is told to."""

    def __init__(self) -> None:
        self.reads = True
        self.on_reads: Callable[[], None] | None = None
        self.told = Told()

    def send(self, reply: Reply) -> None:
        if isinstance(reply, TierChanges) and reply.tier is HOST:
            assert self.reads
            self.told.hear(reply)
            self.reads = False

    def read_on(self) -> None:
        assert self.on_reads is not None
        self.reads = True
        self.on_reads()


class PoolOfNames:
    """As much of a PoolShell as a follower sees."""

    def __init__(self, names: set[int]) -> None:
        self.listeners: set[object] = set()
        self.names = names
        self.manager = self

    def snapshot(self, tier: StorageTier) -> Iterable[Stored]:
        return [Stored(b"", name) for name in self.names] if tier is HOST else []


async def test_a_slow_follower_costs_nobody_else_and_misses_nothing() -> None:
    pool, connection = PoolOfNames({1, 2}), SlowConnection()
    follower = Follower("engine", cast("Connection", connection))

    def figures(_: PoolShell) -> PoolFigures:
        return PoolFigures(namespace=b"", description="", slot_bytes=1, block_tokens=1, engines=1, tiers=[])

    follower.follow(cast("PoolShell", pool), figures)
    assert connection.told.names == {1, 2}
    for name in range(3, 5000):
        follower.changed(Change(HOST, (name,), (name - 2,)))
    connection.read_on()
    await eventually(lambda: connection.told.names == {4998, 4999})
    assert connection.told.messages == 2
    connection.reads = True
    follower.leave()
    assert connection.told.names == set()
    assert not pool.listeners
