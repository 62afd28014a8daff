"""What a worker remembers of its own events."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.protocols.kv_events import (
    HASH_BYTES,
    AllBlocksCleared,
    BlockStored,
    KvEvent,
    KvEventBatch,
    Tier,
)
from dynamo.router.held_blocks import HeldBlocks
from dynamo.tokens import hashes_from_bytes

from .feed_world import removed, stored

Held = dict[tuple[int, Tier], set[int]]


def contents(parts: Iterable[KvEventBatch]) -> Held:
    """What the parts of a dump say; a block may be in one of them only."""
    held: Held = {}
    for part in parts:
        for event in part.events:
            assert isinstance(event, BlockStored)
            blocks = held.setdefault((part.dp_rank, event.tier), set())
            hashes = hashes_from_bytes(event.hashes)
            assert blocks.isdisjoint(hashes)
            blocks.update(hashes)
    return held


def test_ranks_and_tiers_are_kept_apart() -> None:
    held = HeldBlocks()
    held.apply(KvEventBatch(0, [stored(1, 2), stored(2, 3, tier=Tier.HOST)]))
    held.apply(KvEventBatch(1, [stored(1)]))
    held.apply(KvEventBatch(0, [removed(2, 9), removed(3, tier=Tier.DISK)]))
    assert contents(held.dump()) == {(0, Tier.DEVICE): {1}, (0, Tier.HOST): {2, 3}, (1, Tier.DEVICE): {1}}
    assert len(held) == 4


def test_clearing_concerns_one_rank_on_all_tiers() -> None:
    held = HeldBlocks()
    held.apply(KvEventBatch(0, [stored(1), stored(2, tier=Tier.DISK)]))
    held.apply(KvEventBatch(1, [stored(3)]))
    held.apply(KvEventBatch(0, [AllBlocksCleared(), stored(4)]))
    assert contents(held.dump()) == {(0, Tier.DEVICE): {4}, (1, Tier.DEVICE): {3}}


def test_nothing_is_no_part() -> None:
    held = HeldBlocks()
    held.apply(KvEventBatch(0, [stored(1), removed(1)]))
    assert list(held.dump()) == []


def test_parts_have_a_size() -> None:
    held = HeldBlocks()
    held.apply(KvEventBatch(0, [stored(*range(25)), stored(1, tier=Tier.HOST)]))
    parts = list(held.dump(part_blocks=10))
    assert [len(event.hashes) // HASH_BYTES for part in parts for event in part.events] == [10, 10, 5, 1]  # type: ignore[union-attr]
    assert contents(parts) == {(0, Tier.DEVICE): set(range(25)), (0, Tier.HOST): {1}}


def test_dump_is_of_the_moment_it_was_asked_for() -> None:
    held = HeldBlocks()
    held.apply(KvEventBatch(0, [stored(*range(25))]))
    dump = held.dump(part_blocks=10)
    held.apply(KvEventBatch(0, [removed(3), stored(100)]))
    first = next(dump)
    held.apply(KvEventBatch(0, [AllBlocksCleared()]))
    assert contents([first, *dump]) == {(0, Tier.DEVICE): set(range(25))}


def test_hashes_that_are_none() -> None:
    with pytest.raises(ValueError, match="multiple"):
        HeldBlocks().apply(KvEventBatch(0, [BlockStored(b"1234567")]))


HASHES = st.lists(st.integers(0, 20) | st.just(2**64 - 1), max_size=6)
EVENTS = st.one_of(
    st.builds(lambda hashes, tier: stored(*hashes, tier=tier), HASHES, st.sampled_from(Tier)),
    st.builds(lambda hashes, tier: removed(*hashes, tier=tier), HASHES, st.sampled_from(Tier)),
    st.just(AllBlocksCleared()),
)


@given(st.lists(st.tuples(st.integers(0, 2), EVENTS)), st.integers(1, 5))
def test_dump_is_what_is_left_of_all_events(events: list[tuple[int, KvEvent]], part_blocks: int) -> None:
    held, expected = HeldBlocks(), set[tuple[int, Tier, int]]()
    for dp_rank, event in events:
        held.apply(KvEventBatch(dp_rank, [event]))
        if isinstance(event, AllBlocksCleared):
            expected = {block for block in expected if block[0] != dp_rank}
        elif isinstance(event, BlockStored):
            expected |= {(dp_rank, event.tier, block) for block in hashes_from_bytes(event.hashes)}
        else:
            expected -= {(dp_rank, event.tier, block) for block in hashes_from_bytes(event.hashes)}
    dumped = contents(held.dump(part_blocks))
    assert {(rank, tier, block) for (rank, tier), blocks in dumped.items() for block in blocks} == expected
    assert len(held) == len(expected)
