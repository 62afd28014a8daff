"""Which blocks a tier below the host holds, and where."""

from collections.abc import Iterable, Iterator

from dynamo.kvbm.eviction import EvictionPolicy
from dynamo.kvbm.storage.base import Stored

KNOWN_MAX = 1 << 18  # blocks of a tier without places that are remembered, so as not to write them again


class TierBooks:
    """The blocks of one tier, and its places.

    A place is free, or has a block, or is busy: being written or read. What is busy stays so until whoever writes or
    reads is done, even if the books were lost or cleared in between. A tier without places has no limit: its books
    are what is known of it.
    """

    def __init__(self, capacity: int | None, policy: EvictionPolicy) -> None:
        self.capacity = capacity
        self._policy = policy
        self._entries: dict[bytes, Stored] = {}
        self._writing: dict[bytes, Stored] = {}
        self._reading: dict[bytes, Stored] = {}
        self._void: set[bytes] = set()  # being written, but not wanted any more
        self._free: list[int] = []
        self._fresh_place = 0  # places from here on were never used

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Stored]:
        return iter(self._entries.values())

    def get(self, key: bytes) -> Stored | None:
        """The block of this key."""
        return self._entries.get(key)

    def wants(self, key: bytes) -> bool:
        """Whether the block is neither there nor on its way."""
        return key not in self._entries and key not in self._writing

    def touch(self, key: bytes) -> None:
        """It was used, if it is there."""
        if key in self._entries and key not in self._reading:
            self._policy.add(key)

    def begin_write(self, key: bytes, name: int) -> tuple[Stored, Stored | None] | None:
        """A place for this block, and the block that had it and is gone; None if there is no place."""
        if self.capacity is None:
            self._forget_surplus()
            block = self._writing[key] = Stored(key, name)
            return block, None
        evicted = None
        if self._free:
            place = self._free.pop()
        elif self._fresh_place < self.capacity:
            place = self._fresh_place
            self._fresh_place += 1
        else:
            oldest = self._policy.evict()
            if oldest is None:
                return None
            evicted = self._entries.pop(oldest)
            assert evicted.place is not None  # this tier has places
            place = evicted.place
        block = self._writing[key] = Stored(key, name, place)
        return block, evicted

    def end_write(self, key: bytes, *, good: bool) -> bool:
        """It is written, or not. Whether it is in the books now; what was written and is not has to be forgotten."""
        block = self._writing.pop(key)
        wanted = key not in self._void and key not in self._entries
        self._void.discard(key)
        if good and wanted:
            self._entries[key] = block
            self._policy.add(key)
            return True
        self._free_place(block)
        return False

    def begin_read(self, block: Stored) -> None:
        """It stays where it is until `end_read`."""
        self._reading[block.key] = block
        self._policy.hold(block.key)

    def end_read(self, key: bytes, *, good: bool) -> bool:
        """It was read, or is not there; whether it has left the books with that."""
        block = self._reading.pop(key)
        if self._entries.get(key) is not block:  # lost or cleared in between
            self._free_place(block)
            return False
        if good:
            self._policy.add(key)
            return False
        self._remove(block)
        return True

    def learn(self, block: Stored) -> None:
        """It was seen there. Only of tiers without places: of others one knows."""
        if block.key not in self._entries:
            self._forget_surplus()
            self._entries[block.key] = block
        self._policy.add(block.key)

    def is_reading(self, key: bytes) -> bool:
        """Whether a read of this block has not ended yet."""
        return key in self._reading

    def opened(self, blocks: Iterable[Stored]) -> list[Stored]:
        """These are there, and nothing else. Returns those that cannot be kept in the books."""
        self.reset()
        busy = {block.place for block in (*self._writing.values(), *self._reading.values())}
        taken: set[int] = set()
        refused: list[Stored] = []
        for block in blocks:
            if (
                block.key in self._writing
                or block.key in self._reading
                or (block.place in busy and block.place is not None)
            ):
                continue  # its place is another's, or its fate open: it is not counted on
            if self._fits(block, taken):
                self._entries[block.key] = block
                self._policy.add(block.key)
            else:
                refused.append(block)
        self._count_places(taken)
        return refused

    def reset(self) -> list[Stored]:
        """Nothing is there any more. Returns what was."""
        gone = list(self._entries.values())
        for block in gone:
            self._policy.drop(block.key)
        self._entries.clear()
        self._count_places(set())
        return gone

    def void_writes(self) -> None:
        """What is on its way down is not wanted any more."""
        self._void.update(self._writing)

    def remove(self, key: bytes) -> Stored | None:
        """It is gone, if it was there; None for one that is being read, too."""
        block = self._entries.get(key)
        if block is None or key in self._reading:
            return None
        self._remove(block)
        return block

    def _remove(self, block: Stored) -> None:
        del self._entries[block.key]
        self._policy.drop(block.key)
        self._free_place(block)

    def _free_place(self, block: Stored) -> None:
        if block.place is not None:
            self._free.append(block.place)

    def _fits(self, block: Stored, taken: set[int]) -> bool:
        if block.key in self._entries:
            return False
        if self.capacity is None:
            return len(self._entries) < KNOWN_MAX
        if block.place is None or not 0 <= block.place < self.capacity or block.place in taken:
            return False
        taken.add(block.place)
        return True

    def _count_places(self, taken: set[int]) -> None:
        busy = {block.place for block in (*self._writing.values(), *self._reading.values()) if block.place is not None}
        used = taken | busy
        self._fresh_place = max(used) + 1 if used else 0
        self._free = [place for place in range(self._fresh_place) if place not in used]

    def _forget_surplus(self) -> None:
        """Of a tier without places: bounds what is remembered. The blocks stay there."""
        if len(self._entries) >= KNOWN_MAX:
            oldest = self._policy.evict()
            if oldest is not None:
                del self._entries[oldest]
