"""Token blocks and the hashes that name them.

The rule is upstream's, so that both sides name the same block alike: the local hash of a block is xxh3_64 with seed
1337 over its token ids as little-endian u32; the sequence hash chains it to everything before,
seq[0] = local[0], seq[i] = xxh3_64(seq[i-1] || local[i]). A partial block at the end has no hash.
"""

import struct
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    TokenArray = array[int]
else:
    TokenArray = array  # Python 3.11 cannot subscript it

HASH_SEED = 1337
TOKEN_BYTES = 4

_pair = struct.Struct("<QQ")


def token_array(token_ids: Iterable[int] = ()) -> TokenArray:
    """Token ids as an array of u32, the form in which they travel and are hashed.

    Raises OverflowError for an id outside 0..2^32-1.
    """
    return array("I", token_ids)


def local_block_hashes(token_ids: TokenArray, block_size: int) -> list[int]:
    """The hash of each full block of `block_size` tokens, by its own content alone."""
    stride = block_size * TOKEN_BYTES
    data = memoryview(token_ids).cast("B")
    digest = xxhash.xxh3_64_intdigest
    return [digest(data[i : i + stride], HASH_SEED) for i in range(0, len(data) - stride + 1, stride)]


def sequence_hashes(token_ids: TokenArray, block_size: int) -> list[int]:
    """The hash of each full block and all that precedes it: equal hashes mean equal prefixes."""
    return chain_hashes(local_block_hashes(token_ids, block_size))


def chain_hashes(local_hashes: Iterable[int], parent: int | None = None) -> list[int]:
    """Sequence hashes of consecutive blocks that follow the block named `parent` (None: the start)."""
    digest, pack = xxhash.xxh3_64_intdigest, _pair.pack
    chained: list[int] = []
    for local in local_hashes:
        parent = local if parent is None else digest(pack(parent, local), HASH_SEED)
        chained.append(parent)
    return chained
