"""The names of blocks, as users of the library get them."""

import pytest

from dynamo.llm import RadixTree, compute_block_hash_for_seq
from dynamo.protocols.generation import WorkerId
from dynamo.tokens import block_seed, sequence_hashes, token_array

PROMPT = list(range(100, 140))


def test_they_are_those_of_events() -> None:
    assert compute_block_hash_for_seq(PROMPT, 16) == sequence_hashes(token_array(PROMPT), 16)
    salted = sequence_hashes(token_array(PROMPT), 16, block_seed("adapter", "salt"))
    assert compute_block_hash_for_seq(PROMPT, 16, "adapter", "salt") == salted


def test_a_tree_finds_them() -> None:
    tree, worker = RadixTree(), WorkerId(7)
    tree.store(worker, compute_block_hash_for_seq(PROMPT, 4))
    found = tree.find_matches(compute_block_hash_for_seq([*PROMPT[:9], 0, 0, 0], 4))
    assert found.scores == {worker: 2}


def test_block_size() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        compute_block_hash_for_seq(PROMPT, 0)
