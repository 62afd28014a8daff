"""Slots that are emptied a portion at a time."""

import pytest

from dynamo.protocols.kv_events import Tier
from dynamo.router import retired_slots
from dynamo.router.block_index import BlockIndex
from dynamo.router.kernel import make_block_index
from dynamo.router.retired_slots import RetiredSlots
from dynamo.tokens import hash_array


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> BlockIndex:
    """Slot s has s blocks of its own on each tier."""
    monkeypatch.setattr(retired_slots, "PORTION_BLOCKS", 10)
    index = make_block_index(1000)
    for slot in range(20):
        for tier in Tier:
            index.store(slot, tier, hash_array(range(100 * slot, 100 * slot + slot)))
    return index


def left(index: BlockIndex, slot: int) -> int:
    return sum(len(index.held(slot, tier)) for tier in Tier)


def test_nothing_to_do(index: BlockIndex) -> None:
    assert not RetiredSlots(index)
    assert RetiredSlots(index).clear_portion() == []


def test_large_one(index: BlockIndex) -> None:
    retired = RetiredSlots(index)
    retired.add(14)
    for portion in range(1, 5):
        assert retired.clear_portion() == []
        assert left(index, 14) == 42 - 10 * portion
    assert retired
    assert retired.clear_portion() == [14]
    assert not retired
    assert left(index, 14) == 0
    assert left(index, 13) == 39


def test_small_ones_share_a_portion(index: BlockIndex) -> None:
    retired = RetiredSlots(index)
    for slot in (0, 1, 2, 3):
        retired.add(slot)
    assert retired.clear_portion() == [0, 1, 2]
    assert left(index, 3) == 8
    assert retired.clear_portion() == [3]


def test_blocks_that_had_to_make_room_meanwhile(index: BlockIndex) -> None:
    retired = RetiredSlots(index)
    retired.add(14)
    retired.clear_portion()
    index.store(0, Tier.DEVICE, hash_array(range(10_000, 11_000)))
    assert left(index, 14) == 0
    while retired:
        retired.clear_portion()
    assert len(index) == 1000
