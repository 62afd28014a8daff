"""Which worker holds which KV blocks: the data structure under `RadixTree`, and its interface.

Sequence hashes are chained, so a block's hash names its whole prefix: a flat table from hash to holders is enough, no
tree has to be walked or kept in order. Workers are small integers here, slots, so that the holders of a block are the
bits of one integer.

`PyBlockIndex` is the reference. `dynamo.router.kernel` chooses between it and the same in C++.
"""

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from itertools import islice, repeat
from typing import Protocol

from dynamo.tokens import HashArray, TokenArray, hash_array, hashes_from_bytes, sequence_hashes

TIERS = 3  # device, host, disk: see dynamo.protocols.kv_events.Tier
SLOTS_MAX = 65_536

# (slot, blocks on device, on host, on disk): consecutive from the first block on, each counted on its fastest tier.
SlotMatch = tuple[int, int, int, int]

Hashes = HashArray | bytes  # or as they travel, see dynamo.tokens.hashes_to_bytes

_LOG_STALE = 4  # how many times as long as needed a log may become: to tidy it costs a look-up for each block in it,
_LOG_SLACK = 1024  # and how much longer it may be in any case
_FEW = 8  # bits; so many are found faster one by one than by looking at all
_OLDEST = 64  # one in so many blocks is taken down as one of the oldest, at a time


class BlockIndex(Protocol):
    """Holds at most `max_blocks` different blocks; those that were stored or matched longest ago make room.

    Of the blocks of one call the later ones make room first, for they are of no use without the earlier ones. A slot
    or tier out of range is a ValueError, and so are bytes that are not a whole number of hashes.
    """

    @property
    def pruned(self) -> int:
        """Blocks that had to make room."""
        ...

    def __len__(self) -> int:
        """Different blocks."""
        ...

    def store(self, slot: int, tier: int, hashes: Hashes, /) -> None:
        """`slot` holds these blocks on `tier`, whether it was known or not."""
        ...

    def remove(self, slot: int, tier: int, hashes: Hashes, /) -> None:
        """`slot` holds them there no longer; unknown ones are passed over."""
        ...

    def clear(self, slot: int, most: int, /) -> int:
        """`slot` holds fewer blocks from now on, if not none: it looks at `most` to be taken from it.

        Returns at how many it has looked: where they are fewer, nothing is left.
        """
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
        self._device: dict[int, int] = {}
        self._holders: tuple[dict[int, int], ...] = (self._device, {}, {})  # by tier
        self._oldest: dict[int, None] = {}  # the first ones in _device, in reverse; as many as are taken down
        self._places: dict[int, _Place] = {}  # by TIERS * slot + tier; none is empty
        self.pruned = 0

    def __len__(self) -> int:
        return len(self._device)

    def store(self, slot: int, tier: int, hashes: Hashes) -> None:
        key = _key(slot, tier)
        hashes = _as_array(hashes)
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
            if len(place.log) > _LOG_STALE * place.count + _LOG_SLACK:
                place.compact(self._holders[tier], bit)
        if len(self._device) > self._max_blocks:
            self._prune()

    def remove(self, slot: int, tier: int, hashes: Hashes) -> None:
        key = _key(slot, tier)
        hashes = _as_array(hashes)
        place = self._places.get(key)
        if place is None:
            return
        holders = self._holders[tier]
        get = holders.get
        bit = 1 << slot
        for block in hashes:
            mask = get(block, 0)
            if mask & bit:
                place.count -= 1
                holders[block] = mask ^ bit
                if mask == bit:
                    self._drop_if_free(block, tier)
        if not place.count:
            del self._places[key]

    def clear(self, slot: int, most: int) -> int:
        left = most
        for tier in range(TIERS):
            place = self._places.get(_key(slot, tier))
            if place is not None and left > 0:
                leave = place.log[-left:]
                del place.log[-left:]
                left -= len(leave)
                self.remove(slot, tier, leave)
        return most - left

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
        self._use(blocks)
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
        added = 0
        if blocks and blocks[-1] not in holders:  # then mostly none is known, and all can be added at once
            added = _add_missing(holders, blocks, bit)
            if added == len(blocks):
                return added
        take = holders.pop
        for block in blocks:
            mask = take(block, 0)
            if not mask & bit:
                mask |= bit
                added += 1
            holders[block] = mask
        self._no_longer_oldest(blocks)
        return added

    def _store_slower(self, bit: int, tier: int, blocks: list[int]) -> int:
        """Returns how many of them are new there."""
        self._use(blocks)
        holders = self._holders[tier]
        added = _add_missing(holders, blocks, bit)
        if added < len(blocks):
            for block in blocks:
                mask = holders[block]
                if not mask & bit:
                    holders[block] = mask | bit
                    added += 1
        return added

    def _use(self, blocks: list[int]) -> None:
        """They are the newest now, the last one of all."""
        device = self._device
        take = device.pop
        for block in blocks:
            device[block] = take(block, 0)
        self._no_longer_oldest(blocks)

    def _no_longer_oldest(self, blocks: list[int]) -> None:
        if self._oldest:
            _exhaust(map(self._oldest.pop, blocks, repeat(None)))

    def _drop_if_free(self, block: int, tier: int) -> None:
        """Nobody holds `block` on `tier` any more."""
        if tier:
            del self._holders[tier][block]
        device, host, disk = self._holders
        if not device[block] and block not in host and block not in disk:
            del device[block]
            self._oldest.pop(block, None)

    def _prune(self) -> None:
        oldest = self._take_oldest(len(self._device) - self._max_blocks)
        for tier, holders in enumerate(self._holders):
            if holders:
                self._uncount(tier, Counter(map(holders.pop, oldest, repeat(0))))
        self.pruned += len(oldest)

    def _take_oldest(self, count: int) -> list[int]:
        """The blocks that were used longest ago, still in _device.

        A dict finds its first key by passing the places of all that stood before it and have gone: so the first ones
        are looked for only now and then, many at once.
        """
        if len(self._oldest) < count:
            first = list(islice(self._device, max(count, len(self._device) // _OLDEST)))
            self._oldest = dict.fromkeys(reversed(first))
        take = self._oldest.popitem
        return [take()[0] for _ in range(count)]

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


def _as_array(hashes: Hashes) -> HashArray:
    return hashes_from_bytes(hashes) if isinstance(hashes, bytes) else hashes


def _add_missing(holders: dict[int, int], blocks: list[int], mask: int) -> int:
    """Those that are not in `holders` yet get this mask. Returns how many these are."""
    size = len(holders)
    _exhaust(map(holders.setdefault, blocks, repeat(mask)))
    return len(holders) - size


def _exhaust(calls: Iterator[object]) -> None:
    """Makes calls for their effect alone, in a loop that is not in Python."""
    deque(calls, maxlen=0)


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
