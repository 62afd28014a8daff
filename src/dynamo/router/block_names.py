"""From an engine's own names of its blocks to ours. Pure.

An engine names a block by a hash of its own making, and tells the tokens once, when it stores the block. We need a
block's tokens and the name of its parent to name it, and the name itself when the block goes.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from dynamo.protocols.kv_events import Tier
from dynamo.router.radix_tree import MAX_BLOCKS
from dynamo.tokens import HASH_SEED, HashArray, TokenArray, chain_hashes, hash_array, local_block_hashes

logger = logging.getLogger(__name__)

EngineHash = int | bytes


class _Name(NamedTuple):
    sequence_hash: int
    seed: int  # of the local hashes of this block and of all that follow it


class BlockNames:
    """The names of the blocks that one data-parallel rank holds, on whichever tier."""

    def __init__(self, *, copies: bool = False, max_blocks: int = MAX_BLOCKS) -> None:
        """`copies`: the engine speaks of each copy of a block, which is gone when it is removed as often as stored.

        No more than `max_blocks` blocks have names at one time.
        """
        self.unnamed = 0  # blocks that were stored but could not be named
        self._copies = copies
        self._max_blocks = max_blocks
        self._names: dict[EngineHash, _Name] = {}
        self._held: dict[Tier, dict[EngineHash, int]] = {tier: {} for tier in Tier}  # copies
        self._causes: set[str] = set()

    def __len__(self) -> int:
        return len(self._names)

    def stored(
        self,
        token_ids: TokenArray,
        block_size: int,
        block_hashes: Sequence[EngineHash],
        parent: EngineHash | None = None,
        *,
        seed: int = HASH_SEED,
        tier: Tier = Tier.DEVICE,
    ) -> HashArray:
        """Consecutive full blocks came into the cache after `parent`; returns the names of those that are new there.

        `seed` is block_seed() of blocks at the start; later ones have that of their parent. Without tokens the blocks
        must be known already, from another tier.
        """
        if token_ids and not self._name(token_ids, block_size, block_hashes, parent, seed):
            return hash_array()
        held, new, unknown = self._held[tier], hash_array(), 0
        for block in block_hashes:
            name = self._names.get(block)
            if name is None:
                unknown += 1
                continue
            copies = held.get(block, 0)
            held[block] = copies + 1 if self._copies else 1
            if not copies:
                new.append(name.sequence_hash)
        if unknown:
            self.drop(unknown, "they are of unknown tokens")
        return new

    def removed(self, block_hashes: Sequence[EngineHash], tier: Tier = Tier.DEVICE) -> HashArray:
        """Blocks left the tier; returns the names of those that are gone from there. Unknown ones are passed over."""
        held, gone = self._held[tier], hash_array()
        for block in block_hashes:
            copies = held.get(block, 0)
            if copies > 1:
                held[block] = copies - 1
            elif copies:
                del held[block]
                gone.append(self._names[block].sequence_hash)
                if not any(block in other for other in self._held.values()):
                    del self._names[block]
        return gone

    def clear(self) -> None:
        """Nothing is held any more."""
        self._names.clear()
        for held in self._held.values():
            held.clear()

    def drop(self, count: int, cause: str) -> None:
        """Counts blocks that cannot be named; each cause is logged once."""
        self.unnamed += count
        if cause not in self._causes:
            self._causes.add(cause)
            logger.warning("routers will not hear of some blocks in the KV cache: %s", cause)

    def _name(
        self,
        token_ids: TokenArray,
        block_size: int,
        block_hashes: Sequence[EngineHash],
        parent: EngineHash | None,
        seed: int,
    ) -> bool:
        """Whether the blocks have names now."""
        count = len(block_hashes)
        before = None if parent is None else self._names.get(parent)
        if len(token_ids) != count * block_size:
            cause = "their tokens do not fill them"
        elif parent is not None and before is None:
            cause = "the blocks before them are unknown"
        elif len(self._names) + count > self._max_blocks:
            cause = f"{self._max_blocks} have names already"
        else:
            seed = seed if before is None else before.seed
            local_hashes = local_block_hashes(token_ids, block_size, seed)
            names = chain_hashes(local_hashes, None if before is None else before.sequence_hash)
            self._names.update((block, _Name(name, seed)) for block, name in zip(block_hashes, names, strict=True))
            return True
        self.drop(count, cause)
        return False
