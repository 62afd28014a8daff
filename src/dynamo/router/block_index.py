"""Which worker holds which KV blocks: the data structure under `RadixTree`, and its interface.

Sequence hashes are chained, so a block's hash names its whole prefix: a flat table from hash to holders is enough, no
tree has to be walked or kept in order. Workers are small integers here, slots, so that the holders of a block are the
bits of one integer.

This is the reference. `dynamo.router.kernel` chooses between it and the same in C++.
"""

from collections import OrderedDict
from typing import Protocol

from dynamo.tokens import HashArray, hash_array

TIERS = 3  # device, host, disk: see dynamo.protocols.kv_events.Tier

# (slot, blocks on device, on host, on disk): consecutive from the first block on, each counted on its fastest tier.
SlotMatch = tuple[int, int, int, int]


class BlockIndex(Protocol):
    """Holds at most `max_blocks` different blocks; those that were stored or matched longest ago make room."""

    pruned: int  # blocks that had to make room

    def __len__(self) -> int:
        """Different blocks."""
        ...

    def store(self, slot: int, tier: int, hashes: HashArray) -> None:
        """`slot` holds these blocks on `tier`, whether it was known or not."""
        ...

    def remove(self, slot: int, tier: int, hashes: HashArray) -> None:
        """`slot` holds them there no longer; unknown ones are passed over."""
        ...

    def clear(self, slot: int) -> None:
        """`slot` holds nothing any more."""
        ...

    def match(self, hashes: HashArray) -> list[SlotMatch]:
        """How many of these consecutive blocks each slot holds; slots without the first one are left out."""
        ...

    def held(self, slot: int, tier: int) -> HashArray:
        """The blocks that `slot` holds on `tier`, in no particular order."""
        ...

    def count(self, slot: int) -> int:
        """How many blocks `slot` holds; one on two tiers counts twice."""
        ...


class PyBlockIndex:
    """BlockIndex in Python.

    The holders of a block are one integer: bit 3 * slot + tier.
    """

    def __init__(self, max_blocks: int) -> None:
        if max_blocks < 1:
            raise ValueError(f"max_blocks must be at least 1, not {max_blocks}")
        self._max_blocks = max_blocks
        self._holders: OrderedDict[int, int] = OrderedDict()  # by hash, least recently used first
        self._held: dict[int, set[int]] = {}  # by 3 * slot + tier
        self.pruned = 0

    def __len__(self) -> int:
        return len(self._holders)

    def store(self, slot: int, tier: int, hashes: HashArray) -> None:
        place = TIERS * slot + tier
        bit = 1 << place
        holders = self._holders
        held = self._held.setdefault(place, set())
        for block in reversed(hashes):  # a prefix must not go before what continues it
            holders[block] = holders.pop(block, 0) | bit
        held.update(hashes)
        if len(holders) > self._max_blocks:
            self._prune()

    def remove(self, slot: int, tier: int, hashes: HashArray) -> None:
        place = TIERS * slot + tier
        held = self._held.get(place)
        if held is None:
            return
        bit = 1 << place
        holders = self._holders
        for block in hashes:
            if block in held:
                held.remove(block)
                left = holders[block] ^ bit
                if left:
                    holders[block] = left
                else:
                    del holders[block]
        if not held:
            del self._held[place]

    def clear(self, slot: int) -> None:
        for tier in range(TIERS):
            held = self._held.get(TIERS * slot + tier)
            if held is not None:
                self.remove(slot, tier, hash_array(held))

    def match(self, hashes: HashArray) -> list[SlotMatch]:
        holders = self._holders
        matches: list[SlotMatch] = []
        active = _on_device(holders.get(hashes[0], 0)) if hashes else 0
        slower: dict[int, list[int]] = {}  # by slot: blocks on host, on disk
        depth = 0
        for block in hashes:
            mask = holders.get(block, 0)
            still = active & mask
            if still != active:
                still = active & _on_device(mask)
                if still != active:
                    self._ended(active ^ still, depth, slower, matches)
                self._count_slower(still & ~mask, mask, slower)
                active = still
            if not active:
                break
            depth += 1
        self._ended(active, depth, slower, matches)
        for block in reversed(hashes[:depth]):
            holders.move_to_end(block)
        return matches

    def held(self, slot: int, tier: int) -> HashArray:
        return hash_array(self._held.get(TIERS * slot + tier, ()))

    def count(self, slot: int) -> int:
        return sum(len(self._held.get(TIERS * slot + tier, ())) for tier in range(TIERS))

    def _count_slower(self, slots: int, mask: int, slower: dict[int, list[int]]) -> None:
        """Counts a block for slots that hold it, but not on their device."""
        while slots:
            lowest = slots & -slots
            slots ^= lowest
            counts = slower.setdefault(lowest.bit_length() // TIERS, [0, 0])
            counts[0 if mask & (lowest << 1) else 1] += 1

    def _ended(self, slots: int, depth: int, slower: dict[int, list[int]], matches: list[SlotMatch]) -> None:
        """Those slots hold `depth` blocks."""
        while slots:
            lowest = slots & -slots
            slots ^= lowest
            slot = lowest.bit_length() // TIERS
            host, disk = slower.get(slot, (0, 0))
            if depth:
                matches.append((slot, depth - host - disk, host, disk))

    def _prune(self) -> None:
        while len(self._holders) > self._max_blocks:
            block, mask = self._holders.popitem(last=False)
            self.pruned += 1
            while mask:
                lowest = mask & -mask
                mask ^= lowest
                self._held[lowest.bit_length() - 1].discard(block)


def _on_device(mask: int) -> int:
    """The holders on any tier, as if they held the block on their device."""
    return (mask | mask >> 1 | mask >> 2) & _every_third(mask.bit_length())


def _every_third(bits: int) -> int:
    """Bits 0, 3, 6, ... up to `bits`."""
    while bits > len(_THIRDS) - 1:
        _THIRDS.append(_THIRDS[-1] | 1 << (len(_THIRDS) - 1) if (len(_THIRDS) - 1) % TIERS == 0 else _THIRDS[-1])
    return _THIRDS[bits]


_THIRDS = [0]  # by number of bits
