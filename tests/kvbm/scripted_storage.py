"""A tier that does what a test says."""

import asyncio
from collections.abc import Sequence

from dynamo.kvbm.storage.base import Copy, Outcome, Stored
from dynamo.protocols.kvbm import StorageTier


class ScriptedStorage:
    """As Storage. Calls wait while `hold` is clear, and fail while there is an `error`."""

    def __init__(self, tier: StorageTier = StorageTier.DISK, capacity: int | None = 64) -> None:
        self.tier = tier
        self.capacity = capacity
        self.error: Exception | None = None
        self.go = asyncio.Event()
        self.go.set()
        self.calls: list[tuple[str, list[bytes]]] = []  # in the order of their begin
        self.under_way = 0
        self.most_under_way = 0
        self.opened = 0
        self.closed = 0
        self.blocks: dict[bytes, Stored] = {}

    async def open(self) -> list[Stored]:
        self.opened += 1
        if self.error is not None:
            raise self.error
        return list(self.blocks.values())

    async def write(self, copies: Sequence[Copy]) -> None:
        await self._call("write", [copy.block.key for copy in copies])
        self.blocks.update({copy.block.key: copy.block for copy in copies})

    async def read(self, copies: Sequence[Copy]) -> list[Outcome]:
        await self._call("read", [copy.block.key for copy in copies])
        return [Outcome.READ if copy.block.key in self.blocks else Outcome.ABSENT for copy in copies]

    async def forget(self, blocks: Sequence[Stored]) -> None:
        await self._call("forget", [block.key for block in blocks])
        for block in blocks:
            self.blocks.pop(block.key, None)

    async def find(self, keys: Sequence[bytes]) -> int:
        await self._call("find", list(keys))
        return next((i for i, key in enumerate(keys) if key not in self.blocks), len(keys))

    async def clear(self) -> None:
        self.blocks.clear()

    async def close(self) -> None:
        self.closed += 1

    async def _call(self, name: str, keys: list[bytes]) -> None:
        self.calls.append((name, keys))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.go.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.under_way -= 1
