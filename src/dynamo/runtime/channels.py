"""The connections of this process to instances: one per address, made when first needed, and watched."""

import asyncio
import logging
import math
from dataclasses import dataclass

from dynamo.errors import DrainingError, UnreachableError
from dynamo.runtime.background import kept_up
from dynamo.runtime.request_plane.base import Address, Channel, RequestPlane
from dynamo.runtime.request_plane.connection import READ_FIRST_S

logger = logging.getLogger(__name__)

_PATIENCE = 4  # how many times as long as it waits itself this process asks others to wait for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """How often others are asked for a sign of life (0: never), and how long they may stay silent."""

    interval_s: float
    stall_s: float

    @property
    def beats_max(self) -> int:
        """The silence in beats. They are counted, not timed: while this process itself is held up, none passes."""
        return max(1, math.ceil(self.stall_s / self.interval_s))

    @property
    def own_silence_max_s(self) -> float:
        """After which others may take this process for dead."""
        return _PATIENCE * max(self.stall_s, self.interval_s)


NO_HEARTBEAT = Heartbeat(interval_s=0.0, stall_s=0.0)


class Channels:
    def __init__(self, plane: RequestPlane, heartbeat: Heartbeat = NO_HEARTBEAT) -> None:
        self._plane = plane
        self._heartbeat = heartbeat
        self._open: dict[Address, Channel] = {}
        self._opening: dict[Address, asyncio.Task[Channel]] = {}
        self._retired: list[Channel] = []  # may have calls under way
        self._stalled: dict[Address, Channel] = {}  # at the last beat
        self._quiet: dict[Address, Channel] = {}  # likewise
        self._beating: asyncio.Task[None] | None = None

    @property
    def any_quiet(self) -> bool:
        """Whether is_quiet() and is_stalled() are worth asking."""
        return bool(self._quiet or self._stalled)

    def is_quiet(self, address: Address) -> bool:
        """Whether the instance is late with a sign of life: others are better to be asked, if there are any."""
        channel = self._quiet.get(address)
        return channel is not None and channel.quiet

    def is_stalled(self, address: Address) -> bool:
        """Whether the instance gives no sign of life, as far as there is a connection to it."""
        channel = self._stalled.get(address)
        return channel is not None and channel.stalled

    async def get(self, address: Address) -> Channel:
        """Raises ConnectionLostError when the instance can't be reached, DrainingError when it is going away."""
        channel = self._open.get(address)
        if channel is None or channel.lost:
            channel = await self._connected(address)
        if channel.stalled:
            raise UnreachableError("the worker gives no sign of life")
        if not channel.usable:
            raise DrainingError("the worker is shutting down")
        return channel

    def forget(self, address: Address) -> None:
        """Lets go of the connection to an instance that takes no more calls; those under way go on."""
        if (channel := self._open.pop(address, None)) is not None:
            channel.retire()
            self._retired = [c for c in self._retired if not c.lost] + [channel]

    async def close(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])
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
        if self._heartbeat.interval_s > 0:
            channel.beat(self._heartbeat.own_silence_max_s)  # so that the other side knows from the start
            if self._beating is None:
                self._beating = kept_up(self._beat, "heartbeat")
        return channel

    def _connection_tried(self, address: Address, task: asyncio.Task[Channel]) -> None:
        del self._opening[address]
        if not task.cancelled():
            task.exception()  # all who waited for it may have been cancelled

    async def _beat(self) -> None:
        """Asks all for a sign of life, and judges those that have given none for too long."""
        beats_max = self._heartbeat.beats_max
        while True:
            await asyncio.sleep(self._heartbeat.interval_s)
            channels = [channel for channel in (*self._open.values(), *self._retired) if not channel.lost]
            silent = [channel for channel in channels if channel.beat(self._heartbeat.own_silence_max_s) >= beats_max]
            if silent:
                await asyncio.sleep(READ_FIRST_S)
            for channel in silent:
                channel.judge(beats_max)
            self._quiet = {address: channel for address, channel in self._open.items() if channel.quiet}
            self._note_stalled()

    def _note_stalled(self) -> None:
        stalled = {address: channel for address, channel in self._open.items() if channel.stalled}
        for address in stalled.keys() - self._stalled.keys():
            logger.warning("the worker at %s gives no sign of life", _name(address))
        for address in self._stalled.keys() - stalled.keys():
            logger.info("the worker at %s is back, or gone", _name(address))
        self._stalled = stalled


def _name(address: Address) -> str:
    return f"{address.tcp_host}:{address.tcp_port}"
