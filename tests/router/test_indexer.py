"""The index follows what workers say, and takes no harm from nonsense."""

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from dynamo.protocols.generation import WorkerId
from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent, KvEventBatch, Tier
from dynamo.router import indexer as indexer_module
from dynamo.router.held_blocks import HeldBlocks
from dynamo.router.indexer import RANKS_MAX, KvIndexer
from dynamo.router.radix_tree import Overlap
from dynamo.runtime.codec import encode_payload, payload_decoder
from dynamo.runtime.event_feed import EventFeed, FeedCursor, FeedEvent, FeedItem, Step, Subscribe
from dynamo.tokens import hash_array, hashes_from_bytes, hashes_to_bytes

A, B = 0xA, 0xB  # instances


def stored(*hashes: int, tier: Tier = Tier.DEVICE) -> BlockStored:
    return BlockStored(hashes_to_bytes(hash_array(hashes)), tier)


def removed(*hashes: int, tier: Tier = Tier.DEVICE) -> BlockRemoved:
    return BlockRemoved(hashes_to_bytes(hash_array(hashes)), tier)


def batch(*events: KvEvent, dp_rank: int = 0) -> KvEventBatch:
    return KvEventBatch(dp_rank, list(events))


def payload(value: Any) -> Raw:
    return Raw(encode_payload(value))


Places = set[tuple[int, int, Tier, int]]  # instance, rank, tier, hash


def known(indexer: KvIndexer) -> Places:
    return {(w.instance_id, w.dp_rank, tier, block) for w, tier, held in indexer.tree.dump() for block in held}


class TestEvents:
    def test_of_several_instances_and_ranks(self) -> None:
        indexer = KvIndexer()
        indexer.apply(A, batch(stored(1, 2, 3), removed(3)))
        indexer.apply(A, batch(stored(1), dp_rank=1))
        indexer.apply_payload(B, payload(batch(stored(1, tier=Tier.HOST))))
        assert indexer.find_matches(hash_array([1, 2, 3])).overlaps == {
            WorkerId(A, 0): Overlap(device=2),
            WorkerId(A, 1): Overlap(device=1),
            WorkerId(B, 0): Overlap(host=1),
        }
        assert (indexer.events, indexer.malformed) == (4, 0)

    def test_clearing_concerns_one_rank(self) -> None:
        indexer = KvIndexer()
        indexer.apply(A, batch(stored(1)))
        indexer.apply(A, batch(stored(1), dp_rank=1))
        indexer.apply(A, batch(AllBlocksCleared()))
        assert known(indexer) == {(A, 1, Tier.DEVICE, 1)}

    def test_dump_replaces_all_ranks(self) -> None:
        indexer = KvIndexer()
        indexer.apply(A, batch(stored(1, 2)))
        indexer.apply(A, batch(stored(3), dp_rank=1))
        indexer.apply(B, batch(stored(1)))
        indexer.replace(A, [batch(stored(2)), batch(stored(4, tier=Tier.DISK))])
        assert known(indexer) == {(A, 0, Tier.DEVICE, 2), (A, 0, Tier.DISK, 4), (B, 0, Tier.DEVICE, 1)}
        indexer.replace_payloads(A, [])
        assert known(indexer) == {(B, 0, Tier.DEVICE, 1)}
        assert indexer.dumps == 2

    def test_instance_that_is_gone(self) -> None:
        indexer = KvIndexer()
        indexer.apply(A, batch(stored(1)))
        indexer.apply(A, batch(stored(1), dp_rank=7))
        indexer.apply(B, batch(stored(2)))
        indexer.forget(A)
        indexer.forget(A)
        assert known(indexer) == {(B, 0, Tier.DEVICE, 2)}
        assert indexer.tree.workers() == [WorkerId(B)]


class TestNonsense:
    @pytest.mark.parametrize(
        ("event", "reason"),
        [
            (BlockStored(b"1234567"), "7 bytes are not a whole number of hashes"),
            (BlockRemoved(b"12345678" + b"9"), "9 bytes are not a whole number of hashes"),
        ],
    )
    def test_event(self, event: KvEvent, reason: str, caplog: pytest.LogCaptureFixture) -> None:
        """Is dropped; those around it are not."""
        indexer = KvIndexer()
        indexer.apply(A, batch(stored(1), event, stored(2)))
        assert known(indexer) == {(A, 0, Tier.DEVICE, 1), (A, 0, Tier.DEVICE, 2)}
        assert (indexer.events, indexer.malformed) == (2, 1)
        assert "instance a " in caplog.text
        assert reason in caplog.text

    @pytest.mark.parametrize("dp_rank", [-1, RANKS_MAX, 2**40])
    def test_rank(self, dp_rank: int) -> None:
        indexer = KvIndexer()
        indexer.apply(A, batch(stored(1), stored(2), dp_rank=dp_rank))
        assert (known(indexer), indexer.malformed) == (set(), 2)
        indexer.apply(A, batch(stored(1), dp_rank=RANKS_MAX - 1))
        assert indexer.events == 1

    @pytest.mark.parametrize(
        "value",
        [
            None,
            "text",
            [],
            [0],
            [0, "events"],
            ["0", []],
            [0, [[9, b""]]],
            [0, [[0, "12345678"]]],
            [0, [[0, b"12345678", 3]]],
            [0, [[0]]],
            {"dp_rank": 0, "events": []},
        ],
    )
    def test_shape(self, value: Any, caplog: pytest.LogCaptureFixture) -> None:
        indexer = KvIndexer()
        indexer.apply_payload(A, payload(value))
        assert (known(indexer), indexer.events, indexer.malformed) == (set(), 0, 1)
        assert "instance a " in caplog.text

    def test_bytes_that_are_no_value_at_all(self) -> None:
        indexer = KvIndexer()
        indexer.apply_payload(A, Raw(b"\xc1"))
        assert indexer.malformed == 1

    def test_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(indexer_module, "BATCH_BYTES_MAX", 32)
        indexer = KvIndexer()
        indexer.apply(A, batch(stored(1, 2, 3, 4, 5)))
        indexer.apply_payload(A, payload(batch(stored(1, 2, 3, 4))))
        assert (known(indexer), indexer.malformed) == (set(), 2)
        indexer.apply(A, batch(stored(1, 2, 3, 4)))
        indexer.apply_payload(A, payload(batch(stored(5))))
        assert len(known(indexer)) == 5

    def test_part_of_a_dump(self) -> None:
        """The rest of it is better than nothing."""
        indexer = KvIndexer()
        indexer.apply(A, batch(stored(9)))
        indexer.replace_payloads(A, [payload(batch(stored(1))), payload(17), payload(batch(BlockStored(b"1")))])
        assert (known(indexer), indexer.malformed) == ({(A, 0, Tier.DEVICE, 1)}, 2)

    def test_each_instance_is_warned_about_once(self, caplog: pytest.LogCaptureFixture) -> None:
        indexer = KvIndexer()
        for _ in range(100):
            indexer.apply_payload(A, payload(1))
            indexer.apply_payload(B, payload(1))
        assert len(caplog.records) == 2
        indexer.forget(A)
        assert not caplog.records[2:]
        assert indexer.malformed == 200

    @given(st.binary(max_size=60), st.integers(-2, 5))
    def test_never_raises(self, data: bytes, dp_rank: int) -> None:
        indexer = KvIndexer()
        indexer.apply_payload(A, Raw(data))
        indexer.replace_payloads(A, [Raw(data)])
        indexer.apply(A, batch(BlockStored(data), BlockRemoved(data), dp_rank=dp_rank))
        indexer.forget(A)
        assert known(indexer) == set()


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

    def publish(self, batch: KvEventBatch) -> None:
        self.held.apply(batch)
        self.feed.publish(batch)

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

    def __init__(self, events_max: int, workers: int) -> None:
        self._events_max = events_max
        self._next_id = 0
        self.workers: list[Worker] = []
        self._wires: dict[int, Wire] = {}
        for _ in range(workers):
            self.start_worker()
        self.start_router()

    def start_worker(self) -> None:
        self._next_id += 1
        self.workers.append(Worker(self._next_id, self._events_max))

    def start_router(self) -> None:
        for worker in self.workers:
            self.disconnect(worker)
        self.indexer = KvIndexer()
        self._cursors: dict[int, FeedCursor] = {}
        self._seen: dict[int, list[FeedEvent]] = {}

    def restart_worker(self, place: int) -> None:
        gone = self.workers.pop(place)
        self.indexer.forget(gone.instance_id)
        self.disconnect(gone)
        self.start_worker()

    def disconnect(self, worker: Worker) -> None:
        wire = self._wires.pop(worker.instance_id, None)
        if wire is not None:
            wire.close()

    def carry(self, worker: Worker, fault: str | None = None) -> bool:
        """Brings one item from a worker to the router, connecting them first; False when there is none."""
        key = worker.instance_id
        cursor = self._cursors.setdefault(key, FeedCursor())
        if key not in self._wires:
            self._wires[key] = Wire(worker.feed, cursor.last_id)
            cursor.reconnected()
        item = self._wires[key].pull()
        if item is None:
            return False
        if fault != "lost":
            self.take(worker, item)
        if fault == "doubled":
            self.take(worker, item)
        return True

    def late(self, worker: Worker, position: int) -> None:
        """An event that the router has had before comes again."""
        seen = self._seen.get(worker.instance_id)
        if seen:
            self.take(worker, seen[position % len(seen)])

    def take(self, worker: Worker, item: FeedItem) -> None:
        key = worker.instance_id
        cursor = self._cursors[key]
        step = cursor.accept(item)
        if isinstance(item, FeedEvent):
            self._seen.setdefault(key, []).append(item)
        if step is Step.APPLY:
            assert isinstance(item, FeedEvent)
            self.indexer.apply_payload(key, item.payload)
        elif step is Step.REPLACE:
            self.indexer.replace_payloads(key, cursor.take_dump())
        elif step is Step.GAP:
            self.disconnect(worker)

    def settle(self) -> None:
        """No more faults; the connection is renewed, as after a silence."""
        for worker in self.workers:
            while self.carry(worker):
                pass
            self.disconnect(worker)
            while self.carry(worker):
                pass


HASHES = st.lists(st.integers(0, 9), max_size=4)
EVENTS = st.one_of(
    st.builds(lambda hashes, tier: stored(*hashes, tier=tier), HASHES, st.sampled_from(Tier)),
    st.builds(lambda hashes, tier: stored(*hashes, tier=tier), HASHES, st.sampled_from(Tier)),
    st.builds(lambda hashes, tier: removed(*hashes, tier=tier), HASHES, st.sampled_from(Tier)),
    st.just(AllBlocksCleared()),
)
PLACES = st.integers(0, 1)
STEPS = st.one_of(
    st.tuples(st.just("publish"), PLACES, st.builds(KvEventBatch, st.integers(0, 1), st.lists(EVENTS, max_size=3))),
    st.tuples(st.just("carry"), PLACES, st.sampled_from([None, None, None, "lost", "doubled"])),
    st.tuples(st.just("late"), PLACES, st.integers(0, 30)),
    st.tuples(st.sampled_from(["disconnect", "restart worker", "restart router"]), PLACES, st.none()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=60), st.integers(1, 6))
def test_index_ends_equal_to_what_the_workers_hold(steps: list[tuple[str, int, Any]], events_max: int) -> None:
    """Whatever was lost, doubled or late, whoever was restarted, and however little the feed keeps."""

    async def run() -> None:  # the feed makes futures, which want a loop
        world = World(events_max, workers=2)
        for action, place, detail in steps:
            worker = world.workers[place]
            match action:
                case "publish":
                    worker.publish(detail)
                case "carry":
                    world.carry(worker, detail)
                case "late":
                    world.late(worker, detail)
                case "disconnect":
                    world.disconnect(worker)
                case "restart worker":
                    world.restart_worker(place)
                case "restart router":
                    world.start_router()
        world.settle()
        assert known(world.indexer) == set().union(*(worker.holds() for worker in world.workers))

    asyncio.run(run())
