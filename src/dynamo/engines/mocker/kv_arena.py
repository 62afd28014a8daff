"""Real memory for the KV blocks of one simulated engine."""

from collections.abc import Iterable, Sequence

from dynamo.engines.mocker.block_content import BlockContent
from dynamo.transfer import Blocks, Region


class KvArena:
    """Slots of one size. A named slot holds the block of that name, for as many as use it; others belong to one user.

    There are as many as the engine has blocks, and its sequences hold a block for each slot that they take, so there is
    always one left.
    """

    def __init__(self, region: Region, block_bytes: int) -> None:
        """`block_bytes`: a multiple of ALIGN_BYTES."""
        self._region = region
        self._view = region.view()
        self._block_bytes = block_bytes
        self._content = BlockContent(block_bytes)
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

    def write(self, slots: Iterable[int], names: Iterable[int]) -> None:
        """Puts these blocks there; in any thread."""
        for slot, name in zip(slots, names, strict=True):
            self._content.write(self._at(slot), name)

    def consume(self, slots: Iterable[int], names: Iterable[int]) -> int:
        """How many of these slots held something else than these blocks; in any thread. They hold nothing then."""
        return sum(not self._content.consume(self._at(slot), name) for slot, name in zip(slots, names, strict=True))

    def _at(self, slot: int) -> memoryview:
        return self._view[slot * self._block_bytes : (slot + 1) * self._block_bytes]
