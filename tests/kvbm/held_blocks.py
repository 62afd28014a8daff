"""A pool's host memory, as peers may read it: the blocks of small_pool, in the slots of their numbers."""

from collections.abc import Sequence

from dynamo.kvbm.peer_endpoint import Pin
from dynamo.kvbm.storage.base import Copy
from tests.kvbm.storage.small_pool import SmallPool, stored


class HeldBlocks:
    """As HostBlocks."""

    def __init__(self, pool: SmallPool, numbers: Sequence[int]) -> None:
        copies = [Copy(slot=number, block=stored(number)) for number in numbers]
        pool.fill(copies)
        self.held = {copy.block.key: copy for copy in copies}
        self.pinned: dict[int, Pin] = {}
        self.pins = 0

    def pin(self, keys: Sequence[bytes]) -> Pin:
        found: list[Copy] = []
        for key in keys:
            if key not in self.held:
                break
            found.append(self.held[key])
        self.pins += 1
        self.pinned[self.pins] = Pin(self.pins, found)
        return self.pinned[self.pins]

    def unpin(self, pin: Pin) -> None:
        del self.pinned[pin.id]
