from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.engines.mocker.kv_arena import KvArena, available_memory_bytes, content
from dynamo.transfer import Agent

BLOCK_BYTES = 6000


@pytest.fixture
async def arena() -> AsyncIterator[KvArena]:
    async with Agent("a") as agent:
        yield KvArena(agent.allocate(4 * BLOCK_BYTES), BLOCK_BYTES)


async def test_blocks_of_one_name_share_a_slot(arena: KvArena) -> None:
    assert arena.take_named([7, 8]) == [7, 8]
    assert arena.take_named([7, 9]) == [9]
    assert arena.used == 3
    assert arena.slots([7, 8])[0] == arena.slots([7, 9])[0]

    arena.give_named([7, 8])
    assert arena.used == 2
    assert arena.take_named([7, 8]) == [8], "what nobody used was forgotten"
    arena.give_named([7, 9])
    arena.give_named([7, 8])
    assert arena.used == 0


async def test_slots_without_a_name_are_ones_own(arena: KvArena) -> None:
    arena.take_named([7])
    slots = arena.take(3)

    assert len({*slots, *arena.slots([7])}) == 4
    arena.give(slots)
    assert arena.used == 1


async def test_what_was_filled_is_right_and_all_else_is_wrong(arena: KvArena) -> None:
    slots = arena.take(4)
    arena.fill(slots[:3], [7, 8, 9])

    assert arena.count_wrong(slots[:3], [7, 8, 9]) == 0
    assert arena.count_wrong(slots[:3], [8, 7, 9]) == 2
    assert arena.count_wrong(slots[3:], [10]) == 1
    assert [len(bytes(arena._at(slot))) for slot in slots] == 4 * [BLOCK_BYTES]
    arena._view[slots[2] * BLOCK_BYTES + 5999] ^= 1
    assert arena.count_wrong(slots[:3], [7, 8, 9]) == 1


async def test_the_blocks_of_slots(arena: KvArena) -> None:
    blocks = arena.blocks([2, 0])
    assert (blocks.agent, len(blocks), blocks.size_bytes) == ("a", 2, 2 * BLOCK_BYTES)


@given(name=st.integers(0, 2**64 - 1), size_bytes=st.integers(0, 20_000))
def test_content_has_its_size_and_no_two_pages_alike(name: int, size_bytes: int) -> None:
    made = content(name, size_bytes)
    pages = {made[start : start + 4096] for start in range(0, size_bytes, 4096)}

    assert len(made) == size_bytes
    assert len(pages) == -(-size_bytes // 4096)
    assert size_bytes < 8 or content(name ^ 1, size_bytes) != made


def test_there_is_memory() -> None:
    assert available_memory_bytes() > 1 << 20
