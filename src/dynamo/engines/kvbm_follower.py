"""Follows what the block manager's service keeps for an engine: for routers, and for metrics."""

import asyncio
import logging
from pathlib import Path

from dynamo.engines.base import KvEventSink
from dynamo.engines.kvbm_sink import TieredSink
from dynamo.errors import ConnectionLostError, DynamoError, ErrorInfo, ProtocolError, from_info
from dynamo.kvbm.frames import frame, reply_reader
from dynamo.kvbm.socket_path import connect
from dynamo.protocols.kvbm import KVBM_VERSION, Figures, Follow, PoolFigures, Refused, Reply, TierChanges
from dynamo.runtime.background import in_background
from dynamo.runtime.backoff import Backoff
from dynamo.runtime.connected_socket import adopted_streams

logger = logging.getLogger(__name__)

SILENCE_S_MAX = 10.0  # figures come every second: after so long it hangs
_RETRY_S_MIN = 0.1
_RETRY_S_MAX = 2.0
_READ_BYTES = 256 << 10


class KvbmFollower:
    """Connects to the service, and again whenever it is gone: what it kept is gone for routers meanwhile."""

    def __init__(
        self,
        path: Path,
        owner: str,
        *,
        silence_s_max: float = SILENCE_S_MAX,
        retry_s_max: float = _RETRY_S_MAX,
    ) -> None:
        """`owner`: under which the engine attaches."""
        self._path = path
        self._owner = owner
        self._sink: TieredSink | None = None
        self._silence_s_max = silence_s_max
        self._backoff = Backoff(min(_RETRY_S_MIN, retry_s_max), retry_s_max)
        self._figures: PoolFigures | None = None
        self._hears = False
        self._following: asyncio.Task[None] | None = None

    def tell(self, sink: KvEventSink, ranks: int = 1) -> KvEventSink:
        """The sink for the engine's own events, through which `sink` hears of the pool too: see TieredSink.

        To be called before start(); if it is not, there are only figures.
        """
        self._sink = TieredSink(sink, ranks)
        return self._sink

    def start(self) -> None:
        """Returns at once; to be called once."""
        self._following = in_background(self._run(), "follow the block manager")

    async def close(self) -> None:
        """Idempotent, and possible without start(). Routers are told that the pool's blocks are gone."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])

    def figures(self) -> list[PoolFigures]:
        """Of the engine's pool, as of about a second ago; none while it is not there."""
        return [] if self._figures is None else [self._figures]

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except DynamoError as error:
                level = logging.WARNING if self._hears else logging.DEBUG  # each loss is said once
                logger.log(level, "what the block manager keeps is not known: %s", error)
            finally:
                self._forget()
            await asyncio.sleep(self._backoff.next_s())

    async def _follow(self) -> None:
        """Until the connection is lost, which is an error."""
        sock = connect(self._path, timeout_s=0)
        try:
            reader, writer = await adopted_streams(sock)
        except OSError as error:
            raise ConnectionLostError(f"the block manager's service cannot be reached: {error}") from error
        try:
            writer.write(frame(Follow(version=KVBM_VERSION, owner=self._owner)))
            await self._read(reader)
        except OSError as error:
            raise ConnectionLostError(f"the block manager's service is gone: {error}") from error
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        frames = reply_reader()
        while True:
            try:
                async with asyncio.timeout(self._silence_s_max):
                    data = await reader.read(_READ_BYTES)
            except TimeoutError as error:
                raise ConnectionLostError("the block manager's service says nothing") from error
            if not data:
                raise ConnectionLostError("the block manager's service is gone")
            for reply in frames.feed(data):
                self._take(reply)

    def _take(self, reply: Reply) -> None:
        match reply:
            case TierChanges():
                self._hears = True
                self._backoff.reset()
                self._tell(reply)
            case Figures(pools=pools):
                self._figures = pools[0] if pools else None
            case Refused(code=code, message=message):
                raise from_info(ErrorInfo(code=code, message=message))
            case _:
                raise ProtocolError(f"the block manager's service sends {type(reply).__name__} to who follows")

    def _tell(self, changes: TierChanges) -> None:
        if self._sink is None:
            return
        try:
            self._sink.pool_changed(changes)
        except ValueError as error:
            raise ProtocolError(f"the block manager's service has sent names that are none: {error}") from error

    def _forget(self) -> None:
        self._hears = False
        self._figures = None
        if self._sink is not None:
            self._sink.pool_lost()
