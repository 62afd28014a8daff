"""The block managers of other hosts, found by discovery and asked by the runtime."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from dynamo.errors import ConnectionLostError, DeadlineExceededError, ProtocolError
from dynamo.kvbm.storage.peer import Pinned
from dynamo.protocols.kvbm_peer import (
    KEYS_MAX,
    BlocksFound,
    BlocksPinned,
    FindBlocks,
    PeerReply,
    PeerRequest,
    PinBlocks,
)
from dynamo.runtime.client import Client
from dynamo.runtime.context import Context
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.instance import EndpointId
from dynamo.transfer import Blocks


def blocks_endpoint(deployment: str, namespace: bytes) -> EndpointId:
    """Where pools of this namespace offer their blocks: who serves it has such a pool."""
    return EndpointId(deployment, "kvbm", f"blocks-{namespace.hex()}")


class RuntimePeers:
    """As Peers: the instances of an endpoint, see blocks_endpoint()."""

    def __init__(self, runtime: DistributedRuntime, endpoint: EndpointId) -> None:
        self._runtime = runtime
        self._endpoint = endpoint
        self._opened: Client | None = None

    async def open(self) -> None:
        if self._opened is None:
            self._opened = self._runtime.client(self._endpoint, PeerReply)

    def others(self) -> Sequence[int]:
        if self._opened is None:
            return []
        return [peer for peer in self._opened.available_ids() if peer != self._runtime.instance_id]

    async def find(self, peer: int, keys: Sequence[bytes], timeout_s: float) -> int:
        async with self._asked(peer, FindBlocks(b"".join(keys[:KEYS_MAX])), timeout_s) as reply:
            if not isinstance(reply, BlocksFound):
                raise ProtocolError("a block manager has answered something else")
            return reply.count

    @asynccontextmanager
    async def pinned(self, peer: int, keys: Sequence[bytes], timeout_s: float) -> AsyncIterator[Pinned]:
        async with self._asked(peer, PinBlocks(b"".join(keys[:KEYS_MAX])), timeout_s) as reply:
            if not isinstance(reply, BlocksPinned):
                raise ProtocolError("a block manager has answered something else")
            yield Pinned(reply.metadata, Blocks.decode(reply.blocks))

    async def close(self) -> None:
        """Idempotent."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    @asynccontextmanager
    async def _asked(self, peer: int, request: PeerRequest, timeout_s: float) -> AsyncIterator[PeerReply]:
        """Its first answer. The call goes on until the end of the block."""
        if self._opened is None:
            raise ConnectionLostError("the other block managers are not followed")
        context = Context(deadline_s=time.monotonic() + timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                replies = await self._opened.direct(request, peer, False, context)
        except TimeoutError:
            raise DeadlineExceededError(f"block manager {peer:x} cannot be reached") from None
        try:
            yield await _first(replies)
        finally:
            await replies.aclose()


async def _first(replies: AsyncIterator[PeerReply]) -> PeerReply:
    async for reply in replies:
        return reply
    raise ProtocolError("a block manager has given no answer")
