"""Slots of a block index that are asked for no more. Pure."""

from collections import deque

from dynamo.router.block_index import BlockIndex

PORTION_BLOCKS = 8192  # as many as a part of a dump has: dumps that follow each other leave nothing to pile up


class RetiredSlots:
    """Empties them a portion at a time: a million blocks that go at once would hold up everybody."""

    def __init__(self, index: BlockIndex) -> None:
        self._index = index
        self._slots: deque[int] = deque()

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
            gone = self._index.clear(self._slots[0], portion)
            if gone < portion:
                empty.append(self._slots.popleft())
            portion -= gone
        return empty
