"""Real memory for the KV blocks of one simulated engine, and what stands in them."""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import xxhash

from dynamo.transfer import Blocks, Region

_PAGE_BYTES = 4096
_stamp = struct.Struct("<QQ")


class KvArena:
    """Slots of one size. A named slot holds the block of that name, for as many as use it; others belong to one user.

    There are as many as the engine has blocks, and its sequences hold a block for each slot that they take, so there is
    always one left.
    """

    def __init__(self, region: Region, block_bytes: int) -> None:
        self._region = region
        self._view = region.view()
        self._block_bytes = block_bytes
        self._free = list(range(region.size_bytes // block_bytes))
        self._named: dict[int, int] = {}
        self._users: dict[int, int] = {}  # by name

    @property
    def used(self) -> int:
        """Slots that somebody has."""
        return self._region.size_bytes // self._block_bytes - len(self._free)

    def take(self, count: int) -> list[int]:
        """Slots that the caller alone has until give()."""
        return [self._free.pop() for _ in range(count)]

    def give(self, slots: Iterable[int]) -> None:
        self._free += slots

    def take_named(self, names: Sequence[int]) -> list[int]:
        """Makes the caller a user of these blocks; the names among them that nobody used before: to be filled."""
        new = []
        for name in names:
            if name not in self._named:
                self._named[name] = self._free.pop()
                self._users[name] = 0
                new.append(name)
            self._users[name] += 1
        return new

    def give_named(self, names: Iterable[int]) -> None:
        for name in names:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name]
                self._free.append(self._named.pop(name))

    def slots(self, names: Iterable[int]) -> list[int]:
        """Where these blocks are."""
        return [self._named[name] for name in names]

    def blocks(self, slots: Iterable[int]) -> Blocks:
        """What a transfer reads or writes."""
        return self._region.blocks([slot * self._block_bytes for slot in slots], self._block_bytes)

    def fill(self, slots: Iterable[int], names: Iterable[int]) -> None:
        """Writes each block's content; in any thread."""
        for slot, name in zip(slots, names, strict=True):
            self._at(slot)[:] = content(name, self._block_bytes)

    def count_wrong(self, slots: Iterable[int], names: Iterable[int]) -> int:
        """How many of these slots hold something else than these blocks; in any thread."""
        digest = xxhash.xxh3_128_digest
        return sum(
            digest(self._at(slot)) != digest(content(name, self._block_bytes))
            for slot, name in zip(slots, names, strict=True)
        )

    def _at(self, slot: int) -> memoryview:
        return self._view[slot * self._block_bytes : (slot + 1) * self._block_bytes]


def content(name: int, size_bytes: int) -> bytes:
    """What a block of that name holds: no page of it is like another, or like one of another block."""
    pages = range(-(-size_bytes // _PAGE_BYTES))
    stamps = _PAGE_BYTES // _stamp.size
    return b"".join([_stamp.pack(name, page) * stamps for page in pages])[:size_bytes]


def available_memory_bytes() -> int:
    """What the machine could give to new programs, without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo does not say how much memory is available")
