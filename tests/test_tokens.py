"""The hashes must be upstream's to the bit: both sides name blocks by them."""

import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from dynamo.tokens import (
    HASH_SEED,
    block_seed,
    chain_hashes,
    hashes_from_bytes,
    hashes_to_bytes,
    local_block_hashes,
    sequence_hashes,
    token_array,
)

TOKEN_IDS = st.lists(st.integers(0, 2**32 - 1), max_size=60)
BLOCK_SIZES = st.integers(1, 20)


def by_the_book(token_ids: list[int], block_size: int) -> tuple[list[int], list[int]]:
    """The rule as its document states it, a step at a time."""
    local: list[int] = []
    for start in range(0, len(token_ids) - len(token_ids) % block_size, block_size):
        block = token_ids[start : start + block_size]
        local.append(xxhash.xxh3_64(b"".join(struct.pack("<I", t) for t in block), seed=1337).intdigest())
    chained: list[int] = []
    for position, value in enumerate(local):
        if position == 0:
            chained.append(value)
        else:
            chained.append(xxhash.xxh3_64(struct.pack("<QQ", chained[-1], value), seed=1337).intdigest())
    return local, chained


@given(TOKEN_IDS, BLOCK_SIZES)
def test_hashes(token_ids: list[int], block_size: int) -> None:
    tokens = token_array(token_ids)
    local, chained = by_the_book(token_ids, block_size)
    assert list(local_block_hashes(tokens, block_size)) == local
    assert list(sequence_hashes(tokens, block_size)) == chained


def test_known_values() -> None:
    """Fixed for ever: workers and routers of different releases must agree."""
    tokens = token_array(range(1, 9))
    assert HASH_SEED == 1337
    assert list(local_block_hashes(tokens, 4)) == [14643705804678351452, 16777012769546811212]
    assert list(sequence_hashes(tokens, 4)) == [14643705804678351452, 4945711292740353085]


@given(TOKEN_IDS, BLOCK_SIZES, st.integers(0, 10))
def test_chaining_can_go_on_later(token_ids: list[int], block_size: int, known: int) -> None:
    local = local_block_hashes(token_array(token_ids), block_size)
    whole = chain_hashes(local)
    first = whole[:known]
    assert first + chain_hashes(local[known:], parent=first[-1] if first else None) == whole


@given(TOKEN_IDS, TOKEN_IDS, BLOCK_SIZES)
def test_equal_prefixes_have_equal_hashes(prefix: list[int], rest: list[int], block_size: int) -> None:
    shared = len(prefix) // block_size
    one, other = (sequence_hashes(token_array(ids), block_size) for ids in (prefix, prefix + rest))
    assert other[:shared] == one


@pytest.mark.parametrize("count", [0, 1, 15])
def test_partial_block_has_no_hash(count: int) -> None:
    assert not local_block_hashes(token_array(range(count)), 16)
    assert not sequence_hashes(token_array(range(count)), 16)


@pytest.mark.parametrize("token_id", [-1, 2**32])
def test_ids_outside_the_range(token_id: int) -> None:
    with pytest.raises(OverflowError):
        token_array([token_id])


@given(TOKEN_IDS, BLOCK_SIZES)
def test_hashes_survive_the_way_as_bytes(token_ids: list[int], block_size: int) -> None:
    hashes = sequence_hashes(token_array(token_ids), block_size)
    assert hashes_from_bytes(hashes_to_bytes(hashes)) == hashes


def test_half_a_hash_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        hashes_from_bytes(b"1234567")


def test_adapter_and_salt_make_other_blocks() -> None:
    tokens = token_array(range(8))
    seeds = [
        block_seed(),
        block_seed(lora_name="a"),
        block_seed(lora_name="b"),
        block_seed(cache_salt="a"),
        block_seed(lora_name="a", cache_salt="b"),
        block_seed(lora_name="b", cache_salt="a"),
    ]
    assert len({sequence_hashes(tokens, 4, seed)[-1] for seed in seeds}) == len(seeds)
    assert block_seed(lora_name="", cache_salt="") == HASH_SEED
    assert block_seed(lora_name="a") == (HASH_SEED + xxhash.xxh3_64_intdigest(b"a")) % 2**64
