"""The two hot loops of the router, native where the extension was built, in Python otherwise."""

from dynamo.router.block_index import BlockIndex, PyBlockIndex
from dynamo.tokens import HASH_SEED, HashArray, TokenArray, sequence_hashes


def make_block_index(max_blocks: int) -> BlockIndex:
    """Holds at most `max_blocks` different blocks."""
    return PyBlockIndex(max_blocks)


def hash_blocks(token_ids: TokenArray, block_size: int, seed: int = HASH_SEED) -> HashArray:
    """As dynamo.tokens.sequence_hashes."""
    return sequence_hashes(token_ids, block_size, seed)
