"""Serves a pool's host memory to the block managers of other hosts."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from dynamo.errors import InvalidRequestError, OverloadedError
from dynamo.kvbm.layout import PoolLayout
from dynamo.kvbm.storage.base import Copy
from dynamo.kvbm.storage.seals import THREADS, Seals
from dynamo.protocols.kvbm import KEY_BYTES
from dynamo.protocols.kvbm_peer import (
    KEYS_MAX,
    BlocksFound,
    BlocksPinned,
    FindBlocks,
    PeerReply,
    PeerRequest,
    split_keys,
)
from dynamo.runtime.component import payload_handler
from dynamo.runtime.context import Context
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.instance import EndpointId
from dynamo.transfer import Agent, Region
from dynamo.transfer.threads import Threads

LEASE_S = 10.0  # the longest that blocks are kept for a peer: more than it takes to read them
LEASES_MAX = 64


@dataclass(frozen=True, slots=True)
class Pin:
    """Blocks that stay in their slots until they are unpinned."""

    id: int
    copies: Sequence[Copy]


class HostBlocks(Protocol):
    """What a pool has in host memory."""

    def pin(self, keys: Sequence[bytes]) -> Pin:
        """As many of these as are there, from the first on. Nothing is fetched for it."""
        ...

    def unpin(self, pin: Pin) -> None: ...


class PeerEndpoint:
    """Of one pool."""

    def __init__(
        self,
        runtime: DistributedRuntime,
        endpoint: EndpointId,
        agent: Agent,
        arena: Region,
        layout: PoolLayout,
        blocks: HostBlocks,
    ) -> None:
        """`arena` are the pool's slots, registered with the agent, which peers must be able to reach."""
        self._runtime = runtime
        self._endpoint = endpoint
        self._agent = agent
        self._arena = arena
        self._layout = layout
        self._blocks = blocks
        self._threads = Threads(THREADS, "kvbm-serve")
        self._seals = Seals(arena, layout, self._threads)
        self._offered: Region | None = None  # the same slots, for those who may only read
        self._leases: set[asyncio.Event] = set()  # set when they end

    async def start(self) -> None:
        """Raises ConfigError when it cannot be announced, DrainingError when the runtime is shutting down."""
        self._offered = self._agent.register(self._arena.view().toreadonly())
        await self._runtime.serve(self._endpoint, payload_handler(self._serve, PeerRequest))

    async def close(self) -> None:
        """Ends what peers have pinned. Idempotent."""
        await self._runtime.stop_serving(self._endpoint)
        for lease in self._leases:
            lease.set()
        if self._offered is not None:
            self._agent.deregister(self._offered)
        await self._threads.close()

    async def _serve(self, request: PeerRequest, context: Context) -> AsyncIterator[PeerReply]:
        if len(request.keys) > KEYS_MAX * KEY_BYTES:
            raise InvalidRequestError(f"a request may have {KEYS_MAX} keys")
        if len(self._leases) >= LEASES_MAX:
            raise OverloadedError(f"{LEASES_MAX} peers have blocks pinned")
        pin = self._blocks.pin(split_keys(request.keys))
        over = asyncio.Event()
        self._leases.add(over)
        take_back = context.on_stop(lambda _: over.set())
        try:
            if isinstance(request, FindBlocks):
                yield BlocksFound(len(pin.copies))
                return
            await self._seals.seal(pin.copies)
            yield self._offer(pin)
            with suppress(TimeoutError):
                async with asyncio.timeout(LEASE_S):
                    await over.wait()
        finally:
            take_back()
            self._leases.discard(over)
            self._blocks.unpin(pin)

    def _offer(self, pin: Pin) -> BlocksPinned:
        size_bytes = self._layout.slot_bytes
        assert self._offered is not None
        blocks = self._offered.blocks([copy.slot * size_bytes for copy in pin.copies], size_bytes)
        return BlocksPinned(self._agent.metadata([self._offered]), blocks.encode())
