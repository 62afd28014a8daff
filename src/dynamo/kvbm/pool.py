"""The slots of host memory: who has them, what they hold, which can be had."""

from collections.abc import Iterable

from dynamo.kvbm.block import Block, BlockState
from dynamo.kvbm.eviction import EvictionPolicy


class HostPool:
    """A number of slots that grows, each in one state at a time (see `BlockState`).

    A registered block that nobody has pinned is in the policy's order, and may be evicted from there; no other is.
    """

    def __init__(self, policy: EvictionPolicy) -> None:
        self.blocks: list[Block] = []
        self.registered: dict[bytes, Block] = {}
        self.leaving = 0  # blocks that go when they are written
        self._policy = policy
        self._free: list[Block] = []
        self._fresh: list[bytes] = []  # registered since last ranked, first blocks first

    @property
    def free(self) -> int:
        """Slots that are nobody's."""
        return len(self._free)

    @property
    def held(self) -> int:
        """Slots that somebody fills or reads, or that are being emptied: they are not free, and cannot be evicted."""
        return len(self.blocks) - len(self._free) - len(self._policy) - len(self._fresh)

    def grow(self, count: int) -> None:
        """So many slots more."""
        first = len(self.blocks)
        added = [Block(index) for index in range(first, first + count)]
        self.blocks += added
        self._free = added[::-1] + self._free
        self._policy.grow(len(self.blocks))

    def take(self) -> Block | None:
        """A free slot, to be filled; None if there is none."""
        if not self._free:
            return None
        block = self._free.pop()
        block.state = BlockState.PARTIAL
        return block

    def give_back(self, block: Block) -> None:
        """Nobody needs what is in it, nobody uses it: it is free."""
        block.state = BlockState.RESET
        block.key, block.name, block.owner = b"", 0, None
        self._free.append(block)

    def register(self, block: Block) -> None:
        """A filled slot is found under its key from now on. No other is."""
        block.state = BlockState.REGISTERED
        block.owner = None
        self.registered[block.key] = block
        if not block.pins:
            self._fresh.append(block.key)

    def unregister(self, block: Block) -> None:
        """It is not found any more. Its slot is free as soon as nobody reads it."""
        self.rank()
        del self.registered[block.key]
        self._policy.drop(block.key)
        self._stays(block)
        block.state = BlockState.COMPLETE
        self.settle(block)

    def touch(self, block: Block) -> None:
        """A registered block was used."""
        self.rank()
        self._stays(block)
        if not block.pins:
            self._policy.add(block.key)

    def pin(self, block: Block) -> None:
        """One more reads it, or waits for it."""
        if not block.pins and block.state is BlockState.REGISTERED:
            if self._fresh:  # it may be new
                self.rank()
            if block.leaving:
                self._stays(block)
            else:
                self._policy.hold(block.key)
        block.pins += 1

    def unpin(self, blocks: Iterable[Block]) -> None:
        """One less reads each of these; the last of them is the most recently used."""
        for block in blocks:
            block.pins -= 1
            if block.pins:
                continue
            if block.state is BlockState.REGISTERED:
                self._policy.add(block.key)
            else:
                self.settle(block)

    def rank(self) -> None:
        """New blocks join the order: the last block of a prompt before the first."""
        if self._fresh:
            for key in reversed(self._fresh):
                self._policy.add(key)
            self._fresh.clear()

    def victim(self) -> Block | None:
        """The block that is to go next. It is out of the order: unregister it, or let it leave."""
        self.rank()
        key = self._policy.evict()
        return None if key is None else self.registered[key]

    def leave(self, block: Block) -> None:
        """A victim goes as soon as it has been written, unless somebody uses it before."""
        block.leaving = True
        self.leaving += 1

    def settle(self, block: Block) -> None:
        """Frees the slot of a block that is not to be found, if nobody uses it any more."""
        if block.state is BlockState.COMPLETE and not block.pins and not block.writes:
            self.give_back(block)

    def _stays(self, block: Block) -> None:
        if block.leaving:
            block.leaving = False
            self.leaving -= 1
