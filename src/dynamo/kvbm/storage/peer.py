"""Host memory of other hosts as a tier: what their block managers hold is read straight from there.

Nothing is written to them. A peer that fails is left alone for a while; its blocks are absent, and the tier goes on.
"""

import asyncio
import logging
import random
import time
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from dynamo.errors import DynamoError, ProtocolError, UnsupportedFeatureError
from dynamo.kvbm.layout import PoolLayout
from dynamo.kvbm.storage.base import Copy, Outcome, Stored
from dynamo.kvbm.storage.seals import THREADS, Seals
from dynamo.kvbm.storage.threads import together
from dynamo.protocols.kvbm import StorageTier
from dynamo.transfer import Agent, Blocks, Region
from dynamo.transfer.threads import Threads

logger = logging.getLogger(__name__)

FIND_TIMEOUT_S = 0.5
READ_TIMEOUT_S = 5.0
AVOID_S = 10.0  # how long a peer that has failed is not asked
ASKED_MAX = 4  # peers, by a find()
_WHEREABOUTS_MAX = 1 << 16  # blocks


@dataclass(frozen=True, slots=True)
class Pinned:
    """Blocks that a peer keeps for now: the first of those that it was asked for."""

    metadata: bytes  # of its agent
    blocks: Blocks


class Peers(Protocol):
    """The block managers that have a pool of the same namespace, by number. What they do not do raises DynamoErrors."""

    async def open(self) -> None: ...

    def others(self) -> Sequence[int]:
        """Those that there are now, without this one."""
        ...

    async def find(self, peer: int, keys: Sequence[bytes], timeout_s: float) -> int:
        """How many of these blocks, from the first on, it has."""
        ...

    def pinned(self, peer: int, keys: Sequence[bytes], timeout_s: float) -> AbstractAsyncContextManager[Pinned]:
        """It keeps them until the end of the block, but for no longer than `timeout_s`."""
        ...

    async def close(self) -> None: ...


class PeerStorage:
    """As Storage, but for write()."""

    tier = StorageTier.PEER
    capacity: int | None = None

    def __init__(self, agent: Agent, arena: Region, layout: PoolLayout, peers: Peers) -> None:
        """`arena` are the pool's slots, registered with the agent, whose name no peer's agent has. Owns `peers`."""
        self._agent = agent
        self._arena = arena
        self._layout = layout
        self._peers = peers
        self._threads = Threads(THREADS, "kvbm-peer")
        self._seals = Seals(arena, layout, self._threads)
        self._whereabouts: OrderedDict[bytes, int] = OrderedDict()  # peers, by key
        self._avoided_until_s: dict[int, float] = {}
        self._agents: dict[int, str] = {}  # names, by peer

    async def open(self) -> list[Stored]:
        await self._peers.open()
        return []

    async def write(self, copies: Sequence[Copy]) -> None:
        raise UnsupportedFeatureError("nothing is written to peers: each keeps what it has come to")

    async def read(self, copies: Sequence[Copy]) -> list[Outcome]:
        """ABSENT are also those that nobody was found to have, and those of a peer that fails."""
        by_peer: defaultdict[int | None, list[Copy]] = defaultdict(list)
        for copy in copies:
            by_peer[self._whereabouts.get(copy.block.key)].append(copy)
        batches = [(peer, batch) for peer, batch in by_peer.items() if peer is not None]
        read = await together(self._read_from(peer, batch) for peer, batch in batches)
        outcomes = {
            copy.slot: outcome
            for (_, batch), outcomes in zip(batches, read, strict=True)
            for copy, outcome in zip(batch, outcomes, strict=False)
        }
        return [outcomes.get(copy.slot, Outcome.ABSENT) for copy in copies]

    async def forget(self, blocks: Sequence[Stored]) -> None:
        """Where they are; peers keep them."""
        for block in blocks:
            self._whereabouts.pop(block.key, None)

    async def find(self, keys: Sequence[bytes]) -> int:
        """Of the peer that has most, of those that are asked."""
        peers = self._to_ask()
        counts = await asyncio.gather(*(self._count(peer, keys) for peer in peers))
        count, peer = max(zip(counts, peers, strict=True), default=(0, 0))
        for key in keys[:count]:
            self._whereabouts[key] = peer
            self._whereabouts.move_to_end(key)
        while len(self._whereabouts) > _WHEREABOUTS_MAX:
            self._whereabouts.popitem(last=False)
        return count

    async def clear(self) -> None:
        self._whereabouts.clear()

    async def close(self) -> None:
        await self._peers.close()
        for name in self._agents.values():
            self._agent.remove_peer(name)
        self._agents.clear()
        await self._threads.close()

    def _to_ask(self) -> list[int]:
        others = self._peers.others()
        for gone in self._agents.keys() - set(others):
            self._agent.remove_peer(self._agents.pop(gone))
        now_s = time.monotonic()
        self._avoided_until_s = {peer: until_s for peer, until_s in self._avoided_until_s.items() if until_s > now_s}
        willing = [peer for peer in others if peer not in self._avoided_until_s]
        return random.sample(willing, min(len(willing), ASKED_MAX))

    async def _count(self, peer: int, keys: Sequence[bytes]) -> int:
        try:
            return min(await self._peers.find(peer, keys, FIND_TIMEOUT_S), len(keys))
        except DynamoError as error:
            self._avoid(peer, error)
            return 0

    async def _read_from(self, peer: int, copies: Sequence[Copy]) -> list[Outcome]:
        """Of as many as it still has, from the first on."""
        deadline_s = time.monotonic() + READ_TIMEOUT_S
        try:
            async with self._peers.pinned(peer, [copy.block.key for copy in copies], READ_TIMEOUT_S) as pinned:
                here = copies[: len(pinned.blocks)]
                if here:
                    await self._copy(peer, here, pinned, deadline_s)
        except DynamoError as error:
            self._avoid(peer, error)
            return []
        return await self._seals.check(here)

    async def _copy(self, peer: int, copies: Sequence[Copy], pinned: Pinned, deadline_s: float) -> None:
        self._agents[peer] = self._agent.add_peer(pinned.metadata)
        if pinned.blocks.agent != self._agents[peer]:
            raise ProtocolError("these are blocks of another agent")
        size_bytes = self._layout.slot_bytes
        slots = self._arena.blocks([copy.slot * size_bytes for copy in copies], size_bytes)
        await self._agent.read(slots, pinned.blocks, timeout_s=deadline_s - time.monotonic())

    def _avoid(self, peer: int, error: DynamoError) -> None:
        if peer not in self._avoided_until_s:
            logger.warning("block manager %x is not asked for %g s: %s", peer, AVOID_S, error)
        self._avoided_until_s[peer] = time.monotonic() + AVOID_S
