"""An engine's own names of blocks become ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.protocols.kv_events import Tier
from dynamo.router.block_names import BlockNames
from dynamo.tokens import block_seed, hash_array, sequence_hashes, token_array

SIZE = 4
TOKENS = token_array(range(20))
NAMES = sequence_hashes(TOKENS, SIZE)  # of five blocks; the engine calls them 10, 11, ...


def store(names: BlockNames, start: int, stop: int, tier: Tier = Tier.DEVICE, seed: int | None = None) -> list[int]:
    """Blocks `start` to `stop` of TOKENS are stored."""
    tokens = TOKENS[start * SIZE : stop * SIZE]
    parent = None if start == 0 else 9 + start
    hashes = range(10 + start, 10 + stop)
    if seed is None:
        return names.stored(tokens, SIZE, hashes, parent, tier=tier).tolist()
    return names.stored(tokens, SIZE, hashes, parent, tier=tier, seed=seed).tolist()


def test_blocks_are_named_by_all_tokens_before_them() -> None:
    names = BlockNames()
    assert store(names, 0, 2) == NAMES[:2].tolist()
    assert store(names, 2, 3) == NAMES[2:3].tolist()
    assert store(names, 3, 5) == NAMES[3:].tolist()
    assert names.removed([14, 11]).tolist() == [NAMES[4], NAMES[1]]
    assert (len(names), names.unnamed) == (3, 0)


def test_names_of_the_engine_may_be_bytes() -> None:
    names = BlockNames()
    names.stored(TOKENS[:4], SIZE, [b"a"])
    assert names.stored(TOKENS[4:8], SIZE, [b"b"], b"a") == NAMES[1:2]


def test_seed_is_inherited() -> None:
    names, seed = BlockNames(), block_seed("adapter", "salt")
    first = store(names, 0, 2, seed=seed)
    assert first + store(names, 2, 5) == sequence_hashes(TOKENS, SIZE, seed).tolist()
    assert first != NAMES[:2].tolist()


def test_block_that_is_stored_again_is_not_new() -> None:
    names = BlockNames()
    store(names, 0, 3)
    assert store(names, 0, 4) == NAMES[3:4].tolist()
    assert names.removed([12]).tolist() == [NAMES[2]]
    assert names.removed([12]).tolist() == []


def test_copies_are_counted_where_the_engine_speaks_of_each() -> None:
    names = BlockNames(copies=True)
    store(names, 0, 2)
    assert store(names, 0, 1) == []
    assert names.removed([10, 11]).tolist() == [NAMES[1]]
    assert names.removed([10, 11]).tolist() == [NAMES[0]]
    assert len(names) == 0


def test_name_lives_as_long_as_the_block_is_on_any_tier() -> None:
    names = BlockNames()
    store(names, 0, 2)
    assert names.stored(token_array(), 0, [10, 11], tier=Tier.HOST) == NAMES[:2]  # the engine tells no tokens again
    assert names.removed([10, 11]) == NAMES[:2]
    assert store(names, 2, 3) == NAMES[2:3].tolist()
    assert names.removed([11], Tier.HOST) == NAMES[1:2]
    assert names.removed([11], Tier.DISK) == hash_array()
    assert store(names, 2, 4) == []  # the parent has no name any more
    assert names.unnamed == 2


@pytest.mark.parametrize(
    ("stored", "cause"),
    [
        (lambda names: names.stored(TOKENS[:4], SIZE, [1], 99), "the blocks before them are unknown"),
        (lambda names: names.stored(TOKENS[:7], SIZE, [1]), "their tokens do not fill them"),
        (lambda names: names.stored(TOKENS[:8], SIZE, [1]), "their tokens do not fill them"),
        (lambda names: names.stored(token_array(), SIZE, [1]), "they are of unknown tokens"),
        (lambda names: names.stored(TOKENS[:16], SIZE, [1, 2, 3, 4]), "3 have names already"),
    ],
)
def test_blocks_without_a_name(stored: object, cause: str, caplog: pytest.LogCaptureFixture) -> None:
    """They are counted, and the log says why, once."""
    assert callable(stored)
    names = BlockNames(max_blocks=3)
    for _ in range(3):
        assert stored(names) == hash_array()
    assert names.unnamed in (3, 12)
    assert names.removed([1]) == hash_array()
    assert len(names) == 0
    assert [cause in record.message for record in caplog.records] == [True]


def test_clearing() -> None:
    names = BlockNames(copies=True)
    store(names, 0, 3)
    store(names, 0, 3, Tier.HOST)
    names.clear()
    assert len(names) == 0
    assert store(names, 0, 3) == NAMES[:3].tolist()
    assert names.removed([10, 11, 12]) == NAMES[:3]


BLOCKS = st.integers(0, 4)
STEPS = st.lists(st.tuples(st.booleans(), BLOCKS, BLOCKS, st.sampled_from(Tier)))


@given(STEPS, st.booleans())
def test_what_is_told_is_what_is_held(steps: list[tuple[bool, int, int, Tier]], copies: bool) -> None:
    """Against a plain count of copies."""
    names = BlockNames(copies=copies)
    held = {(block, tier): 0 for block in range(5) for tier in Tier}
    told = set[tuple[int, Tier]]()
    for storing, start, stop, tier in steps:
        blocks = range(start, stop + 1)
        if not storing:
            told -= {(name, tier) for name in names.removed([10 + block for block in blocks], tier)}
            for block in blocks:
                held[block, tier] = max(0, held[block, tier] - 1)
        elif start == 0 or any(held[start - 1, other] for other in Tier):
            new = {(name, tier) for name in store(names, start, stop + 1, tier)}
            assert told.isdisjoint(new)
            told |= new
            for block in blocks:
                held[block, tier] = held[block, tier] + 1 if copies else 1
        assert told == {(NAMES[block], tier) for (block, tier), count in held.items() if count}
        assert len(names) == len({block for (block, _), count in held.items() if count})
