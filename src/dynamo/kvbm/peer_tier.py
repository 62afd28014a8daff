"""Other hosts' block managers as a tier, and this one as a tier of theirs."""

import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack

from dynamo.errors import ConnectionLostError
from dynamo.kvbm.arena import HostArena
from dynamo.kvbm.layout import PoolLayout
from dynamo.kvbm.peer_endpoint import HostBlocks, PeerEndpoint
from dynamo.kvbm.peers import RuntimePeers, blocks_endpoint
from dynamo.kvbm.storage.base import Copy, Outcome, Stored
from dynamo.kvbm.storage.peer import PeerStorage
from dynamo.protocols.kvbm import StorageTier
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.transfer import Agent


class PeerTier:
    """As Storage. It joins the deployment when it is opened: a service without peers needs none."""

    tier = StorageTier.PEER
    capacity: int | None = None

    def __init__(self, config: RuntimeConfig, layout: PoolLayout, arena: HostArena) -> None:
        self._config = config
        self._layout = layout
        self._arena = arena
        self._blocks: HostBlocks | None = None
        self._storage: PeerStorage | None = None
        self._stack = AsyncExitStack()

    def serve(self, blocks: HostBlocks) -> None:
        """What peers are given, from the next open() on."""
        self._blocks = blocks

    async def open(self) -> list[Stored]:
        """Raises ConfigError, ConnectionLostError when there is no deployment to join."""
        if self._storage is None:
            async with AsyncExitStack() as stack:
                storage = await self._join(stack)
                self._stack = stack.pop_all()
            self._storage = storage
        return await self._storage.open()

    async def write(self, copies: Sequence[Copy]) -> None:
        await self._opened.write(copies)

    async def read(self, copies: Sequence[Copy]) -> list[Outcome]:
        return await self._opened.read(copies)

    async def forget(self, blocks: Sequence[Stored]) -> None:
        await self._opened.forget(blocks)

    async def find(self, keys: Sequence[bytes]) -> int:
        return await self._opened.find(keys)

    async def clear(self) -> None:
        await self._opened.clear()

    async def close(self) -> None:
        await self._stack.aclose()
        self._storage = None

    @property
    def _opened(self) -> PeerStorage:
        if self._storage is None:
            raise ConnectionLostError("the deployment was not joined")
        return self._storage

    async def _join(self, stack: AsyncExitStack) -> PeerStorage:
        runtime = DistributedRuntime(config=self._config)
        stack.push_async_callback(runtime.close)
        agent = Agent(
            f"kvbm-{secrets.token_hex(8)}", host=self._config.rpc_host, credentials=self._config.credentials()
        )
        await stack.enter_async_context(agent)
        region = agent.register(self._arena.memory)
        endpoint = blocks_endpoint(self._config.worker_namespace, self._layout.namespace)
        storage = PeerStorage(agent, region, self._layout, RuntimePeers(runtime, endpoint))
        stack.push_async_callback(storage.close)
        if self._blocks is not None:
            offered = PeerEndpoint(runtime, endpoint, agent, region, self._layout, self._blocks)
            await offered.start()
            stack.push_async_callback(offered.close)
        return storage
