"""The disk below host memory: slots are copied to places in slabs, and back, past the page cache."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynamo.errors import UnsupportedFeatureError
from dynamo.kvbm.layout import PoolLayout
from dynamo.kvbm.storage.base import Copy, Outcome, Stored
from dynamo.kvbm.storage.pool_directory import PoolDirectory
from dynamo.kvbm.storage.seals import THREADS, Seals
from dynamo.kvbm.storage.slab import Slab, SlabShape
from dynamo.kvbm.storage.threads import finish
from dynamo.protocols.kvbm import StorageTier
from dynamo.transfer import Agent, Region, StoredRegion, Transfer
from dynamo.transfer.threads import Threads

TIMEOUT_S = 30.0  # of a batch: a disk that needs longer is of no use


@dataclass(frozen=True, slots=True)
class _Batch:
    """Copies from and to one slab."""

    slab: Slab
    region: StoredRegion  # the same for the agent
    copies: list[Copy]


class DiskStorage:
    """As Storage. Nothing is asked of the disk before open()."""

    tier = StorageTier.DISK

    def __init__(
        self, agent: Agent, arena: Region, layout: PoolLayout, directory: str | Path, capacity_blocks: int
    ) -> None:
        """`arena` are the pool's slots, registered with the agent. Pools share a directory, each has its own in it."""
        self.capacity: int | None = capacity_blocks
        self._agent = agent
        self._arena = arena
        self._layout = layout
        self._shape = SlabShape.of(layout)
        self._places = capacity_blocks
        self._directory = PoolDirectory(Path(directory), layout, self._shape)
        self._threads = Threads(THREADS, "kvbm-disk")
        self._seals = Seals(arena, layout, self._threads)
        self._slabs: dict[int, Slab] = {}
        self._regions: dict[int, StoredRegion] = {}
        self._making = asyncio.Lock()  # of slabs: held while the two above change

    async def open(self) -> list[Stored]:
        """As Storage.open(). Raises ConfigError when another process uses the pool's directory."""
        async with self._making:
            await self._close_slabs()
            return await finish(self._threads.submit(self._open))

    async def write(self, copies: Sequence[Copy]) -> None:
        await self._seals.seal(copies)
        batches = await self._batches(copies)
        await finish(self._threads.submit(_prepare, batches))
        await self._transfer(self._agent.write, batches)
        await finish(self._threads.submit(self._enter, batches))

    async def read(self, copies: Sequence[Copy]) -> list[Outcome]:
        await self._transfer(self._agent.read, await self._batches(copies))
        return await self._seals.check(copies)

    async def forget(self, blocks: Sequence[Stored]) -> None:
        await finish(self._threads.submit(self._forget, blocks))

    async def find(self, keys: Sequence[bytes]) -> int:
        raise UnsupportedFeatureError("the disk is not searched: open() has told what it holds")

    async def clear(self) -> None:
        """What is written meanwhile may stay, or be found to be corrupt."""
        await finish(self._threads.submit(_clear, list(self._slabs.values())))

    async def close(self) -> None:
        """What is under way ends with ConnectionLostError."""
        async with self._making:
            await self._close_slabs()
            await self._threads.close()
            self._directory.close()

    # Slabs

    async def _batches(self, copies: Iterable[Copy]) -> list[_Batch]:
        """By slab; those that there are not yet are made."""
        by_slab: defaultdict[int, list[Copy]] = defaultdict(list)
        for copy in copies:
            by_slab[_place(copy.block) // self._shape.slots].append(copy)
        async with self._making:
            for number in by_slab.keys() - self._slabs.keys():
                await finish(self._threads.submit(self._make, number))
            return [_Batch(self._slabs[number], self._region(number), batch) for number, batch in by_slab.items()]

    def _region(self, number: int) -> StoredRegion:
        region = self._regions.get(number)
        if region is None:
            slab = self._slabs[number]
            region = self._regions[number] = self._agent.register_file(slab.path, slab.size_bytes, writable=True)
        return region

    async def _close_slabs(self) -> None:
        for region in self._regions.values():
            self._agent.deregister(region)
        self._regions.clear()
        for slab in self._slabs.values():
            await finish(self._threads.submit(slab.close))
        self._slabs.clear()

    # Transfers

    async def _transfer(self, begin: Callable[..., Transfer], batches: Sequence[_Batch]) -> None:
        """Returns, or raises, when nothing is moved any more."""
        size_bytes = self._layout.slot_bytes
        transfers: list[Transfer] = []
        try:
            for batch in batches:
                here = self._arena.blocks([copy.slot * size_bytes for copy in batch.copies], size_bytes)
                offsets = [batch.slab.offset(_place(copy.block)) for copy in batch.copies]
                there = batch.region.blocks(offsets, size_bytes)
                transfers.append(begin(here, there, timeout_s=TIMEOUT_S))
        finally:
            ends = await asyncio.gather(*transfers, return_exceptions=True)
        for end in ends:
            if end is not None:
                raise end

    # In threads

    def _open(self) -> list[Stored]:
        self._directory.open()
        found: dict[bytes, Stored] = {}
        for number in self._directory.slabs():
            if number * self._shape.slots >= self._places:
                self._directory.remove(number)
                continue
            slab = self._make(number)
            for block in slab.entries():
                if found.setdefault(block.key, block) is not block:
                    slab.forget(block)
        return list(found.values())

    def _make(self, number: int) -> Slab:
        first = number * self._shape.slots
        slots = min(self._shape.slots, self._places - first)
        slab = Slab(self._directory.path_of(number), self._shape, self._layout, first=first, slots=slots)
        self._slabs[number] = slab
        return slab

    def _enter(self, batches: Sequence[_Batch]) -> None:
        for batch in batches:
            for copy in batch.copies:
                batch.slab.enter(_place(copy.block), self._seals.slot(copy.slot))

    def _forget(self, blocks: Sequence[Stored]) -> None:
        for block in blocks:
            slab = self._slabs.get(_place(block) // self._shape.slots)
            if slab is not None:
                slab.forget(block)


def _prepare(batches: Sequence[_Batch]) -> None:
    for batch in batches:
        batch.slab.prepare([_place(copy.block) for copy in batch.copies])


def _clear(slabs: Iterable[Slab]) -> None:
    for slab in slabs:
        slab.clear()


def _place(block: Stored) -> int:
    assert block.place is not None
    return block.place
