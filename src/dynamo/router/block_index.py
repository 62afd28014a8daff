"""Which worker holds which KV blocks: the data structure under `RadixTree`, and its interface.

Sequence hashes are chained, so a block's hash names its whole prefix: a flat table from hash to holders is enough, no
tree has to be walked or kept in order. Workers are small integers here, slots, so that the holders of a block are the
bits of one integer.

`PyBlockIndex` is the reference. `dynamo.router.kernel` chooses between it and the same in C++.
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Protocol

from dynamo.tokens import HashArray, TokenArray, hash_array, sequence_hashes

TIERS = 3  # device, host, disk: see dynamo.protocols.kv_events.Tier
SLOTS_MAX = 65_536

# (slot, blocks on device, on host, on disk): consecutive from the first block on, each counted on its fastest tier.
SlotMatch = tuple[int, int, int, int]

_LOG_SLACK = 1024  # how much longer than needed a log may always be
_FEW = 8  # bits; so many are found faster one by one than by looking at all


class BlockIndex(Protocol):
    """Holds at most `max_blocks` different blocks; those that were stored or matched longest ago make room.

    Of the blocks of one call the later ones make room first, for they are of no use without the earlier ones. A slot
    or tier out of range is a ValueError.
    """

    @property
    def pruned(self) -> int:
        """Blocks that had to make room."""
        ...

    def __len__(self) -> int:
        """Different blocks."""
        ...

    def store(self, slot: int, tier: int, hashes: HashArray, /) -> None:
        """`slot` holds these blocks on `tier`, whether it was known or not."""
        ...

    def remove(self, slot: int, tier: int, hashes: HashArray, /) -> None:
        """`slot` holds them there no longer; unknown ones are passed over."""
        ...

    def clear(self, slot: int, /) -> None:
        """`slot` holds nothing any more."""
        ...

    def match(self, hashes: HashArray, /) -> list[SlotMatch]:
        """How many of these consecutive blocks each slot holds; slots without the first one are left out.

        Those that hold the fewest come first, and of them the lowest.
        """
        ...

    def hash_and_match(self, token_ids: TokenArray, block_size: int, seed: int, /) -> tuple[HashArray, list[SlotMatch]]:
        """The sequence hashes of a prompt (`dynamo.tokens`), and what match() says of them."""
        ...

    def held(self, slot: int, tier: int, /) -> HashArray:
        """The blocks that `slot` holds on `tier`, in no particular order."""
        ...


class PyBlockIndex:
    """BlockIndex in Python."""

    def __init__(self, max_blocks: int) -> None:
        if max_blocks < 1:
            raise ValueError(f"max_blocks must be at least 1, not {max_blocks}")
        self._max_blocks = max_blocks
        # By hash, bit s for slot s. The first has every block, if only with 0, least recently used first.
        self._device: OrderedDict[int, int] = OrderedDict()
        self._holders: tuple[dict[int, int], ...] = (self._device, {}, {})  # by tier
        self._places: dict[int, _Place] = {}  # by TIERS * slot + tier; none is empty
        self.pruned = 0

    def __len__(self) -> int:
        return len(self._device)

    def store(self, slot: int, tier: int, hashes: HashArray) -> None:
        key = _key(slot, tier)
        blocks = hashes.tolist()
        blocks.reverse()
        bit = 1 << slot
        added = self._store_slower(bit, tier, blocks) if tier else self._store_on_device(bit, blocks)
        if added:
            place = self._places.get(key)
            if place is None:
                place = self._places[key] = _Place()
            place.count += added
            place.log.extend(hashes)
            if len(place.log) > 2 * place.count + _LOG_SLACK:
                place.compact(self._holders[tier], bit)
        if len(self._device) > self._max_blocks:
            self._prune()

    def remove(self, slot: int, tier: int, hashes: HashArray) -> None:
        key = _key(slot, tier)
        place = self._places.get(key)
        if place is None:
            return
        holders = self._holders[tier]
        bit = 1 << slot
        for block in hashes:
            mask = holders.get(block, 0)
            if mask & bit:
                place.count -= 1
                holders[block] = mask ^ bit
                if mask == bit:
                    self._drop_if_free(block, tier)
        if not place.count:
            del self._places[key]

    def clear(self, slot: int) -> None:
        for tier in range(TIERS):
            place = self._places.get(_key(slot, tier))
            if place is not None:
                self.remove(slot, tier, place.log)

    def match(self, hashes: HashArray) -> list[SlotMatch]:
        blocks = hashes.tolist()
        device, host, disk = self._holders
        if not blocks or blocks[0] not in device:
            return []
        all_on_device = not (host or disk)
        active = device[blocks[0]] | host.get(blocks[0], 0) | disk.get(blocks[0], 0)
        slower: dict[int, list[int]] = {}  # by slot: blocks on host, on disk
        matches: list[SlotMatch] = []
        depth = 0
        get = device.get
        for block in blocks:
            mask = get(block, 0)
            if mask != active:
                still = active & mask
                if still != active and not all_on_device:
                    on_host = host.get(block, 0)
                    still = active & (mask | on_host | disk.get(block, 0))
                    _count_slower(still & ~mask, on_host, slower)
                _end(active ^ still, depth, slower, matches)
                active = still
                if not active:
                    break
            depth += 1
        _end(active, depth, slower, matches)
        del blocks[depth:]
        blocks.reverse()
        use = self._device.move_to_end
        for block in blocks:
            use(block)
        return matches

    def hash_and_match(self, token_ids: TokenArray, block_size: int, seed: int) -> tuple[HashArray, list[SlotMatch]]:
        hashes = sequence_hashes(token_ids, block_size, seed)
        return hashes, self.match(hashes)

    def held(self, slot: int, tier: int) -> HashArray:
        place = self._places.get(_key(slot, tier))
        if place is None:
            return hash_array()
        place.compact(self._holders[tier], 1 << slot)
        return place.log[:]

    def _store_on_device(self, bit: int, blocks: list[int]) -> int:
        """Returns how many of them are new there."""
        holders = self._device
        get, use = holders.get, holders.move_to_end
        added = 0
        for block in blocks:
            mask = get(block)
            if mask is None:
                holders[block] = bit
                added += 1
            else:
                use(block)
                if not mask & bit:
                    holders[block] = mask | bit
                    added += 1
        return added

    def _store_slower(self, bit: int, tier: int, blocks: list[int]) -> int:
        """Returns how many of them are new there."""
        known = self._device
        holders = self._holders[tier]
        added = 0
        for block in blocks:
            if block in known:
                known.move_to_end(block)
            else:
                known[block] = 0
            mask = holders.get(block, 0)
            if not mask & bit:
                holders[block] = mask | bit
                added += 1
        return added

    def _drop_if_free(self, block: int, tier: int) -> None:
        """Nobody holds `block` on `tier` any more."""
        if tier:
            del self._holders[tier][block]
        device, host, disk = self._holders
        if not device[block] and block not in host and block not in disk:
            del device[block]

    def _prune(self) -> None:
        oldest = [self._device.popitem(last=False) for _ in range(len(self._device) - self._max_blocks)]
        self._uncount(0, Counter([mask for _, mask in oldest]))
        for tier, holders in enumerate(self._holders):
            if tier and holders:
                self._uncount(tier, Counter([holders.pop(block, 0) for block, _ in oldest]))
        self.pruned += len(oldest)

    def _uncount(self, tier: int, gone: Mapping[int, int]) -> None:
        """`gone`: how many blocks less there are on `tier`, by who held them."""
        for mask, blocks in gone.items():
            for slot in _each(mask):
                key = TIERS * slot + tier
                place = self._places[key]
                place.count -= blocks
                if not place.count:
                    del self._places[key]


class _Place:
    """What one slot holds on one tier: how much, and where to look for it."""

    __slots__ = ("count", "log")

    def __init__(self) -> None:
        self.count = 0
        self.log = hash_array()  # all that is held, some of it twice, and some that no longer is

    def compact(self, holders: dict[int, int], bit: int) -> None:
        """Leaves what is held, once."""
        if len(self.log) != self.count:
            self.log = hash_array({block for block in self.log if holders.get(block, 0) & bit})


def _key(slot: int, tier: int) -> int:
    if not 0 <= slot < SLOTS_MAX:
        raise ValueError(f"a slot is between 0 and {SLOTS_MAX - 1}, not {slot}")
    if not 0 <= tier < TIERS:
        raise ValueError(f"a tier is between 0 and {TIERS - 1}, not {tier}")
    return TIERS * slot + tier


def _count_slower(slots: int, on_host: int, slower: dict[int, list[int]]) -> None:
    """Counts a block for slots that hold it, but not on their device."""
    for slot in _each(slots):
        counts = slower.setdefault(slot, [0, 0])
        counts[0 if on_host >> slot & 1 else 1] += 1


def _end(slots: int, depth: int, slower: dict[int, list[int]], matches: list[SlotMatch]) -> None:
    """Those slots hold `depth` blocks."""
    if not depth:
        return
    if not slower:
        matches += [(slot, depth, 0, 0) for slot in _each(slots)]
        return
    for slot in _each(slots):
        host, disk = slower.get(slot, (0, 0))
        matches.append((slot, depth - host - disk, host, disk))


def _each(slots: int) -> list[int]:
    """The numbers of the bits that are set, ascending."""
    if slots.bit_count() > _FEW:
        return [slot for slot, digit in enumerate(reversed(bin(slots))) if digit == "1"]
    numbers = []
    while slots:
        lowest = slots & -slots
        slots ^= lowest
        numbers.append(lowest.bit_length() - 1)
    return numbers
