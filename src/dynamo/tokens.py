"""Token blocks and the hashes that name them.

The rule is upstream's, so that both sides name the same block alike: the local hash of a block is xxh3_64 with seed
1337 over its token ids as little-endian u32; the sequence hash chains it to everything before,
seq[0] = local[0], seq[i] = xxh3_64(seq[i-1] || local[i]). A partial block at the end has no hash.

Blocks of different LoRA adapters, or of clients that keep their caches apart by a salt, hold different KV for the same
tokens: both are mixed into the seed of the local hashes (block_seed).
"""

import struct
import sys
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    TokenArray = array[int]
    HashArray = array[int]
else:
    TokenArray = HashArray = array  # Python 3.11 cannot subscript it

HASH_SEED = 1337
TOKEN_BYTES = 4

_UINT64 = 0xFFFF_FFFF_FFFF_FFFF

_pair = struct.Struct("<QQ")


def token_array(token_ids: Iterable[int] = ()) -> TokenArray:
    """Token ids as an array of u32, the form in which they travel and are hashed.

    Raises OverflowError for an id outside 0..2^32-1.
    """
    return array("I", token_ids)


def hash_array(hashes: Iterable[int] = ()) -> HashArray:
    """Hashes as an array of u64, the form in which indexes take them."""
    return array("Q", hashes)


def hashes_to_bytes(hashes: HashArray) -> bytes:
    """Hashes as they travel: u64, little-endian."""
    return hashes.tobytes() if sys.byteorder == "little" else _swapped(hashes).tobytes()


def hashes_from_bytes(data: bytes | memoryview) -> HashArray:
    """The inverse of hashes_to_bytes(); ValueError when `data` is not a whole number of hashes."""
    hashes = hash_array()
    hashes.frombytes(data)
    return hashes if sys.byteorder == "little" else _swapped(hashes)


def block_seed(lora_name: str | None = None, cache_salt: str | None = None) -> int:
    """The seed of the local hashes of blocks computed with this adapter, to be used with this salt only."""
    seed = HASH_SEED
    if lora_name:
        seed += xxhash.xxh3_64_intdigest(lora_name.encode())
    if cache_salt:
        seed += xxhash.xxh3_64_intdigest(cache_salt.encode(), HASH_SEED)
    return seed & _UINT64


def local_block_hashes(token_ids: TokenArray, block_size: int, seed: int = HASH_SEED) -> HashArray:
    """The hash of each full block of `block_size` tokens, by its own content alone."""
    stride = block_size * TOKEN_BYTES
    data = memoryview(token_ids).cast("B")
    digest = xxhash.xxh3_64_intdigest
    return array("Q", [digest(data[i : i + stride], seed) for i in range(0, len(data) - stride + 1, stride)])


def sequence_hashes(token_ids: TokenArray, block_size: int, seed: int = HASH_SEED) -> HashArray:
    """The hash of each full block and all that precedes it: equal hashes mean equal prefixes."""
    return chain_hashes(local_block_hashes(token_ids, block_size, seed))


def chain_hashes(local_hashes: Iterable[int], parent: int | None = None) -> HashArray:
    """Sequence hashes of consecutive blocks that follow the block named `parent` (None: the start)."""
    digest, pack = xxhash.xxh3_64_intdigest, _pair.pack
    chained: list[int] = []
    for local in local_hashes:
        parent = local if parent is None else digest(pack(parent, local), HASH_SEED)
        chained.append(parent)
    return array("Q", chained)


def _swapped(hashes: HashArray) -> HashArray:
    swapped = hashes[:]
    swapped.byteswap()
    return swapped
