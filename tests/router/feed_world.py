"""Workers, a router and a bad network between them, moved by hand: what the property test and the scenarios drive."""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

from msgspec import Raw

from dynamo.protocols.kv_events import BlockRemoved, BlockStored, KvEventBatch, Tier
from dynamo.router.held_blocks import HeldBlocks
from dynamo.router.indexer import KvIndexer
from dynamo.router.radix_tree import MAX_BLOCKS
from dynamo.router.subscriber import hand_on
from dynamo.runtime.codec import encode_payload, payload_decoder
from dynamo.runtime.event_feed import EventFeed, FeedCursor, FeedEvent, FeedItem, Step, Subscribe
from dynamo.tokens import hash_array, hashes_from_bytes, hashes_to_bytes

Places = set[tuple[int, int, Tier, int]]  # instance, rank, tier, hash
Finds = set[tuple[int, int, int]]  # instance, rank, hash


def stored(*hashes: int, tier: Tier = Tier.DEVICE) -> BlockStored:
    return BlockStored(hashes_to_bytes(hash_array(hashes)), tier)


def removed(*hashes: int, tier: Tier = Tier.DEVICE) -> BlockRemoved:
    return BlockRemoved(hashes_to_bytes(hash_array(hashes)), tier)


def known(indexer: KvIndexer) -> Places:
    """All that an index says."""
    return {(w.instance_id, w.dp_rank, tier, block) for w, tier, held in indexer.tree.dump() for block in held}


def found(indexer: KvIndexer, blocks: Iterable[int]) -> Finds:
    """All that a search for one block after the other finds."""
    return {
        (worker.instance_id, worker.dp_rank, block)
        for block in blocks
        for worker in indexer.tree.find_matches(hash_array([block])).overlaps
    }


def replace(indexer: KvIndexer, instance_id: int, parts: Iterable[Any]) -> None:
    """A whole dump."""
    for part in parts:
        indexer.add_part(instance_id, Raw(encode_payload(part)))
    indexer.end_dump(instance_id)


class Wire:
    """A stream of a feed, read by hand: what would make it wait is seen, not waited for."""

    def __init__(self, feed: EventFeed, after: int | None) -> None:
        self._stream: Any = feed.serve(Subscribe(after))
        self._next: Any = None  # the coroutine of the next item, and what it waits for
        self._waiter: asyncio.Future[None] | None = None
        self._decode = payload_decoder(FeedItem)

    def pull(self) -> FeedItem | None:
        """The next item; None when there is none yet."""
        if self._waiter is not None and not self._waiter.done():
            return None
        self._next = self._next or self._stream.__anext__()
        try:
            self._waiter = self._next.send(None)
        except StopIteration as done:
            self._next = self._waiter = None
            return self._decode(done.value)  # type: ignore[no-any-return]
        return None

    def close(self) -> None:
        if self._next is not None:
            with contextlib.suppress(asyncio.CancelledError):
                self._next.throw(asyncio.CancelledError)


class Worker:
    """One instance: what it holds is what its events say."""

    def __init__(self, instance_id: int, events_max: int) -> None:
        self.instance_id = instance_id
        self.held = HeldBlocks()
        self.feed = EventFeed(lambda: self.held.dump(part_blocks=2), events_max=events_max)
        self.held_after: list[Places] = [set()]  # by the id of an event

    def publish(self, batch: KvEventBatch) -> None:
        self.held.apply(batch)
        self.feed.publish(batch)
        self.held_after.append(self.holds())

    def holds(self) -> Places:
        return {
            (self.instance_id, part.dp_rank, event.tier, block)
            for part in self.held.dump()
            for event in part.events
            if isinstance(event, BlockStored)
            for block in hashes_from_bytes(event.hashes)
        }


class World:
    """Workers, a router and a bad network between them; a restart of either is a new one of it."""

    def __init__(self, events_max: int, workers: int = 0) -> None:
        """`events_max`: how many events a new worker keeps."""
        self.events_max = events_max
        self.max_blocks = MAX_BLOCKS  # of a new router's index
        self._next_id = 0
        self.workers: list[Worker] = []
        self._wires: dict[int, Wire] = {}
        for _ in range(workers):
            self.start_worker()
        self.start_router()

    def start_worker(self) -> Worker:
        self._next_id += 1
        self.workers.append(Worker(self._next_id, self.events_max))
        return self.workers[-1]

    def start_router(self) -> None:
        for worker in self.workers:
            self.disconnect(worker)
        self.indexer = KvIndexer(self.max_blocks)
        self._cursors: dict[int, FeedCursor] = {}
        self._seen: dict[int, dict[int, FeedEvent]] = {}  # by instance and id

    def stop_worker(self, worker: Worker) -> None:
        self.workers.remove(worker)
        self.disconnect(worker)
        self.indexer.forget(worker.instance_id)

    def disconnect(self, worker: Worker) -> None:
        key = worker.instance_id
        wire = self._wires.pop(key, None)
        if wire is not None:
            wire.close()
            self._cursors[key].disconnected()
            self.indexer.drop_dump(key)

    def carry(self, worker: Worker, fault: str | None = None) -> bool:
        """Brings one item from a worker to the router, connecting them first; False when there is none.

        `fault`: "lost" or "doubled".
        """
        key = worker.instance_id
        cursor = self._cursors.setdefault(key, FeedCursor())
        if key not in self._wires:
            self._wires[key] = Wire(worker.feed, cursor.last_id)
        item = self._wires[key].pull()
        if item is None:
            return False
        if fault != "lost":
            self.take(worker, item)
        if fault == "doubled":
            self.take(worker, item)
        return True

    def carry_all(self, worker: Worker) -> None:
        while self.carry(worker):
            pass

    def late(self, worker: Worker, event_id: int) -> None:
        """An event that has arrived before comes again; nothing happens if it has not."""
        event = self._seen.get(worker.instance_id, {}).get(event_id)
        if event is not None:
            self.take(worker, event)

    def take(self, worker: Worker, item: FeedItem) -> Step:
        """An item arrives at the router."""
        key = worker.instance_id
        cursor = self._cursors[key]
        step = cursor.accept(item)
        if isinstance(item, FeedEvent):
            self._seen.setdefault(key, {})[item.id] = item
        hand_on(item, step, key, self.indexer)
        if step is Step.GAP:
            self.disconnect(worker)
        return step

    def should_know(self) -> Places:
        """Of each worker what it held after the event that the router has come to, and nothing in between."""
        places: Places = set()
        for worker in self.workers:
            cursor = self._cursors.get(worker.instance_id)
            if cursor is not None and cursor.last_id is not None:
                places |= worker.held_after[cursor.last_id]
        return places

    def close(self) -> None:
        for worker in self.workers:
            self.disconnect(worker)

    def settle(self) -> None:
        """No more faults; the connection is renewed, as after a silence."""
        for worker in self.workers:
            self.carry_all(worker)
            self.disconnect(worker)
            self.carry_all(worker)
