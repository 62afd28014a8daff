"""The names of a prompt's KV blocks, for people who build their own router."""

from collections.abc import Iterable

from dynamo.router.kernel import sequence_hashes
from dynamo.tokens import HashArray, block_seed, token_array


def compute_block_hash_for_seq(
    tokens: Iterable[int], kv_block_size: int, lora_name: str | None = None, cache_salt: str | None = None
) -> HashArray:
    """The sequence hash of each full block of `kv_block_size` tokens: what RadixTree.find_matches() takes.

    As in workers' events, each names its block and all that precedes it. (Upstream's function of this name gives the
    hashes of the blocks by themselves, and its tree chains them. Those are `dynamo.tokens.local_block_hashes`.)

    Raises ValueError for a block size below 1, OverflowError for an id outside 0..2^32-1.
    """
    if kv_block_size < 1:
        raise ValueError(f"kv_block_size must be at least 1, not {kv_block_size}")
    return sequence_hashes(token_array(tokens), kv_block_size, block_seed(lora_name, cache_salt))
