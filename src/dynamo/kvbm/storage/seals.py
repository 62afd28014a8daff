"""The checksums of blocks: made before they leave memory, compared when they are back."""

from collections.abc import Sequence

from dynamo.kvbm.layout import PoolLayout
from dynamo.kvbm.slot import is_intact, seal
from dynamo.kvbm.storage.base import Copy, Outcome
from dynamo.kvbm.storage.threads import spread
from dynamo.transfer import Region
from dynamo.transfer.threads import Threads

THREADS = 4  # that make checksums at a time


class Seals:
    """Of the slots of a pool."""

    def __init__(self, arena: Region, layout: PoolLayout, threads: Threads) -> None:
        self._memory = arena.view()
        self._layout = layout
        self._threads = threads

    def slot(self, index: int) -> memoryview:
        start = index * self._layout.slot_bytes
        return self._memory[start : start + self._layout.slot_bytes]

    async def seal(self, copies: Sequence[Copy]) -> None:
        """Writes the headers of blocks that are about to leave."""
        await spread(self._threads, THREADS, self._seal, copies)

    async def check(self, copies: Sequence[Copy]) -> list[Outcome]:
        """READ or CORRUPT, for each block that has come into its slot."""
        return await spread(self._threads, THREADS, self._check, copies)

    def _seal(self, copy: Copy) -> None:
        seal(
            self.slot(copy.slot),
            namespace=self._layout.namespace,
            key=copy.block.key,
            name=copy.block.name,
            payload_bytes=self._layout.payload_bytes,
        )

    def _check(self, copy: Copy) -> Outcome:
        intact = is_intact(
            self.slot(copy.slot),
            namespace=self._layout.namespace,
            key=copy.block.key,
            payload_bytes=self._layout.payload_bytes,
        )
        return Outcome.READ if intact else Outcome.CORRUPT
