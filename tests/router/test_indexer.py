"""The index follows what workers say, and takes no harm from nonsense."""

import asyncio
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from dynamo.protocols.generation import WorkerId
from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent, KvEventBatch, Tier
from dynamo.router import indexer as indexer_module
from dynamo.router import retired_slots
from dynamo.router.indexer import RANKS_MAX, KvIndexer
from dynamo.router.radix_tree import Overlap
from dynamo.runtime.codec import encode_payload
from dynamo.runtime.event_feed import FeedItem, Step
from dynamo.tokens import hash_array, token_array

from .feed_world import Worker, World, found, known, removed, replace, stored

A, B = 0xA, 0xB  # instances


def batch(*events: KvEvent, dp_rank: int = 0) -> KvEventBatch:
    return KvEventBatch(dp_rank, list(events))


def payload(value: Any) -> Raw:
    return Raw(encode_payload(value))


class TestEvents:
    def test_of_several_instances_and_ranks(self) -> None:
        indexer = KvIndexer()
        indexer.apply(A, batch(stored(1, 2, 3), removed(3)))
        indexer.apply(A, batch(stored(1), dp_rank=1))
        indexer.apply_payload(B, payload(batch(stored(1, tier=Tier.HOST))))
        assert indexer.tree.find_matches(hash_array([1, 2, 3])).overlaps == {
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
        replace(indexer, A, [batch(stored(2)), batch(stored(4, tier=Tier.DISK))])
        assert known(indexer) == {(A, 0, Tier.DEVICE, 2), (A, 0, Tier.DISK, 4), (B, 0, Tier.DEVICE, 1)}
        replace(indexer, A, [])
        assert known(indexer) == {(B, 0, Tier.DEVICE, 1)}
        assert (indexer.dumps, indexer.events) == (2, 3)

    def test_instance_that_is_gone(self) -> None:
        indexer = KvIndexer()
        indexer.apply(A, batch(stored(1)))
        indexer.apply(A, batch(stored(1), dp_rank=7))
        indexer.apply(B, batch(stored(2)))
        indexer.forget(A)
        indexer.forget(A)
        assert known(indexer) == {(B, 0, Tier.DEVICE, 2)}
        assert indexer.tree.workers() == [WorkerId(B)]


class TestDumpUnderWay:
    FORMER = {(A, 0, 1), (A, 0, 2), (B, 0, 2)}

    @pytest.fixture
    def indexer(self) -> KvIndexer:
        """A has 1 and 2, and half a dump of 2 and 3, on another rank too; B has 2."""
        indexer = KvIndexer()
        indexer.apply(A, batch(stored(1, 2)))
        indexer.apply(B, batch(stored(2)))
        indexer.add_part(A, payload(batch(stored(2))))
        indexer.add_part(A, payload(batch(stored(3), dp_rank=1)))
        return indexer

    def test_nobody_finds_half_of_it(self, indexer: KvIndexer) -> None:
        assert found(indexer, range(5)) == self.FORMER
        assert known(indexer) == {(a, rank, Tier.DEVICE, block) for a, rank, block in self.FORMER}
        assert indexer.tree.workers() == [WorkerId(A), WorkerId(B)]
        assert indexer.tree.hash_and_match(token_array([1, 2, 3]), 1)[1].scores == {}

    def test_its_end(self, indexer: KvIndexer) -> None:
        indexer.end_dump(A)
        assert found(indexer, range(5)) == {(A, 0, 2), (A, 1, 3), (B, 0, 2)}
        indexer.apply(A, batch(stored(4)))
        assert found(indexer, range(5)) == {(A, 0, 2), (A, 0, 4), (A, 1, 3), (B, 0, 2)}

    def test_events_go_on_about_the_former_state(self, indexer: KvIndexer) -> None:
        indexer.apply(A, batch(removed(2), stored(4)))
        assert found(indexer, range(5)) == {(A, 0, 1), (A, 0, 4), (B, 0, 2)}
        indexer.apply(A, batch(AllBlocksCleared()))
        assert found(indexer, range(5)) == {(B, 0, 2)}
        indexer.end_dump(A)
        assert found(indexer, range(5)) == {(A, 0, 2), (A, 1, 3), (B, 0, 2)}

    def test_rest_of_it_that_does_not_come(self, indexer: KvIndexer) -> None:
        indexer.drop_dump(A)
        indexer.drop_dump(A)
        assert found(indexer, range(5)) == self.FORMER
        replace(indexer, A, [batch(stored(1))])
        assert found(indexer, range(5)) == {(A, 0, 1), (B, 0, 2)}
        assert len(indexer.tree) == 2

    def test_instance_that_goes(self, indexer: KvIndexer) -> None:
        indexer.forget(A)
        assert found(indexer, range(5)) == {(B, 0, 2)}
        indexer.end_dump(A)  # should it come back under its name
        assert found(indexer, range(5)) == {(B, 0, 2)}
        assert len(indexer.tree) == 1

    def test_of_instance_never_heard_of(self, indexer: KvIndexer) -> None:
        indexer.add_part(0xC, payload(batch(stored(1))))
        assert found(indexer, range(5)) == self.FORMER
        indexer.drop_dump(0xC)
        assert found(indexer, range(5)) == self.FORMER


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
        changes = batch(removed(1), AllBlocksCleared())
        replace(indexer, A, [batch(stored(1)), 17, batch(BlockStored(b"1")), changes, batch(stored(1), dp_rank=-1)])
        assert (known(indexer), indexer.malformed) == ({(A, 0, Tier.DEVICE, 1)}, 5)

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
        indexer.add_part(A, Raw(data))
        indexer.end_dump(A)
        indexer.apply(A, batch(BlockStored(data), BlockRemoved(data), dp_rank=dp_rank))
        indexer.forget(A)
        assert known(indexer) == set()


BLOCKS = range(10)
HASHES = st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=4)
EVENTS = st.one_of(
    st.builds(lambda hashes, tier: stored(*hashes, tier=tier), HASHES, st.sampled_from(Tier)),
    st.builds(lambda hashes, tier: removed(*hashes, tier=tier), HASHES, st.sampled_from(Tier)),
    st.just(AllBlocksCleared()),
)
PLACES = st.integers(0, 1)
STEPS = st.one_of(
    st.tuples(st.just("publish"), PLACES, st.builds(KvEventBatch, st.integers(0, 1), st.lists(EVENTS, max_size=3))),
    st.tuples(st.just("publish"), PLACES, st.builds(KvEventBatch, st.integers(0, 1), st.lists(EVENTS, max_size=3))),
    st.tuples(st.sampled_from(["carry", "lost", "doubled", "carry all"]), PLACES, st.none()),
    st.tuples(st.just("carry all"), PLACES, st.none()),
    st.tuples(st.just("late"), PLACES, st.integers(1, 12)),
    st.tuples(st.sampled_from(["disconnect", "restart worker", "restart router"]), PLACES, st.none()),
)


LIVES = given(st.lists(STEPS, min_size=10, max_size=60), st.integers(1, 6))


@settings(max_examples=100, deadline=None)
@LIVES
def test_index_ends_equal_to_what_the_workers_hold(steps: list[tuple[str, int, Any]], events_max: int) -> None:
    """Whatever was lost, doubled or late, whoever was restarted, and however little the feed keeps."""
    live(steps, events_max)


@pytest.mark.long
@settings(max_examples=2000, deadline=None)
@LIVES
def test_so_it_does_in_many_more_lives(steps: list[tuple[str, int, Any]], events_max: int) -> None:
    live(steps, events_max)


class Checked(World):
    """At no moment is anything of a dump found before all of it is, nor anything of what it replaces after that."""

    def take(self, worker: Worker, item: FeedItem) -> Step:
        step = super().take(worker, item)
        self.check()
        return step

    def check(self) -> None:
        places = self.should_know()
        assert known(self.indexer) == places
        assert found(self.indexer, BLOCKS) == {(instance, rank, block) for instance, rank, _, block in places}


def live(steps: list[tuple[str, int, Any]], events_max: int) -> None:
    async def run() -> None:  # the feed makes futures, which want a loop
        world = Checked(events_max, workers=2)
        for action, place, detail in steps:
            act(world, world.workers[place], action, detail)
            world.check()
        world.settle()
        assert known(world.indexer) == set().union(*(worker.holds() for worker in world.workers))
        world.close()

    with mock.patch.object(retired_slots, "PORTION_BLOCKS", 1):  # most of the time something is left to be cleared
        asyncio.run(run())


def act(world: World, worker: Worker, action: str, detail: Any) -> None:
    match action:
        case "publish":
            worker.publish(detail)
        case "carry" | "lost" | "doubled":
            world.carry(worker, action)
        case "carry all":
            world.carry_all(worker)
        case "late":
            world.late(worker, detail)
        case "disconnect":
            world.disconnect(worker)
        case "restart worker":
            world.stop_worker(worker)
            world.start_worker()
        case "restart router":
            world.start_router()
