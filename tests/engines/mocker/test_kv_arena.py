from collections.abc import AsyncIterator

import pytest

from dynamo.engines.mocker.kv_arena import KvArena
from dynamo.transfer import Agent

BLOCK_BYTES = 6016


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


async def test_what_was_written_is_right_and_all_else_is_wrong(arena: KvArena) -> None:
    slots = arena.take(4)
    arena.write(slots[:3], [7, 8, 9])
    assert arena.consume(slots[:3], [7, 8, 9]) == 0
    assert arena.consume(slots[:3], [7, 8, 9]) == 3, "they were consumed"

    arena.write(slots[:3], [7, 8, 9])
    assert arena.consume(slots, [8, 7, 9, 10]) == 3


async def test_the_blocks_of_slots(arena: KvArena) -> None:
    blocks = arena.blocks([2, 0])
    assert (blocks.agent, len(blocks), blocks.size_bytes) == ("a", 2, 2 * BLOCK_BYTES)
