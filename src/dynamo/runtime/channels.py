"""The connections of this process to instances: one per address, made when first needed."""

import asyncio

from dynamo.errors import DrainingError
from dynamo.runtime.request_plane.base import Address, Channel, RequestPlane


class Channels:
    def __init__(self, plane: RequestPlane) -> None:
        self._plane = plane
        self._open: dict[Address, Channel] = {}
        self._opening: dict[Address, asyncio.Task[Channel]] = {}
        self._retired: list[Channel] = []  # may have calls under way

    async def get(self, address: Address) -> Channel:
        """Raises ConnectionLostError when the instance can't be reached, DrainingError when it is going away."""
        channel = self._open.get(address)
        if channel is None or channel.lost:
            channel = await self._connected(address)
        if not channel.usable:
            raise DrainingError("the worker is shutting down")
        return channel

    def forget(self, address: Address) -> None:
        """Lets go of the connection to an instance that takes no more calls; those under way go on."""
        if (channel := self._open.pop(address, None)) is not None:
            channel.retire()
            self._retired = [c for c in self._retired if not c.lost] + [channel]

    async def close(self) -> None:
        opening = tuple(self._opening.values())
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        await asyncio.gather(*(channel.close() for channel in (*self._open.values(), *self._retired)))

    async def _connected(self, address: Address) -> Channel:
        if address not in self._opening:
            task = asyncio.create_task(self._connect(address))
            self._opening[address] = task
            task.add_done_callback(lambda task: self._connection_tried(address, task))
        return await asyncio.shield(self._opening[address])  # others may wait for the same connection

    async def _connect(self, address: Address) -> Channel:
        channel = self._open[address] = await self._plane.connect(address)
        return channel

    def _connection_tried(self, address: Address, task: asyncio.Task[Channel]) -> None:
        del self._opening[address]
        if not task.cancelled():
            task.exception()  # all who waited for it may have been cancelled
