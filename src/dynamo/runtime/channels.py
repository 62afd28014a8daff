"""The connections of this process to instances: one per address, made when first needed."""

import asyncio

from dynamo.errors import DrainingError
from dynamo.runtime.request_plane.base import Address, Channel, RequestPlane


class Channels:
    def __init__(self, plane: RequestPlane) -> None:
        self._plane = plane
        self._open: dict[Address, Channel] = {}
        self._opening: dict[Address, asyncio.Task[Channel]] = {}

    def ready(self, address: Address) -> Channel | None:
        """The connection to `address` if it is there already."""
        channel = self._open.get(address)
        return channel if channel is not None and channel.usable else None

    async def get(self, address: Address) -> Channel:
        """Raises ConnectionLostError when the instance can't be reached, DrainingError when it is going away."""
        if (channel := self.ready(address)) is not None:
            return channel
        if address not in self._opening:
            task = asyncio.create_task(self._connect(address))
            self._opening[address] = task
            task.add_done_callback(lambda _: self._opening.pop(address, None))
        channel = await asyncio.shield(self._opening[address])  # others may wait for the same connection
        if not channel.usable:
            raise DrainingError("the worker is shutting down")
        return channel

    async def forget(self, address: Address) -> None:
        """Closes the connection to an instance that is gone."""
        if (channel := self._open.pop(address, None)) is not None:
            await channel.close()

    async def close(self) -> None:
        for task in tuple(self._opening.values()):
            task.cancel()
        for address in tuple(self._open):
            await self.forget(address)

    async def _connect(self, address: Address) -> Channel:
        channel = await self._plane.connect(address)
        if (old := self._open.get(address)) is not None and not old.usable:
            await old.close()
        self._open[address] = channel
        return channel
