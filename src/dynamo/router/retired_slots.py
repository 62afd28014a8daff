"""Slots of a block index that are asked for no more. Pure."""

from collections import deque

from dynamo.protocols.kv_events import Tier
from dynamo.router.block_index import BlockIndex
from dynamo.tokens import HashArray

PORTION_BLOCKS = 8192  # as many as a part of a dump has: dumps that follow each other leave nothing to pile up


class RetiredSlots:
    """Empties them a portion at a time: a million blocks that go at once would hold up everybody."""

    def __init__(self, index: BlockIndex) -> None:
        self._index = index
        self._slots: deque[int] = deque()
        self._left: list[tuple[Tier, HashArray]] | None = None  # in the first of them, once it has its turn

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, slot: int) -> None:
        """Nothing may be stored in `slot` until clear_portion() gives it back."""
        self._slots.append(slot)

    def clear_portion(self) -> list[int]:
        """Takes at most PORTION_BLOCKS blocks from them; the slots that are empty now, and can be used again."""
        empty: list[int] = []
        portion = PORTION_BLOCKS
        while self._slots and portion:
            if self._left is None:
                self._left = self._held(self._slots[0])
            if not self._left:
                self._left = None
                empty.append(self._slots.popleft())
                continue
            tier, hashes = self._left[-1]
            leave = hashes[-portion:]
            del hashes[-portion:]
            if not hashes:
                self._left.pop()
            self._index.remove(self._slots[0], tier, leave)
            portion -= len(leave)
        return empty

    def _held(self, slot: int) -> list[tuple[Tier, HashArray]]:
        held = [(tier, self._index.held(slot, tier)) for tier in Tier]
        return [(tier, hashes) for tier, hashes in held if hashes]
