"""What lies below the host memory of a pool."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dynamo.kvbm.arena import HostArena
from dynamo.kvbm.config import ServiceConfig
from dynamo.kvbm.layout import PoolLayout
from dynamo.kvbm.peer_tier import PeerTier
from dynamo.kvbm.storage.base import Storage
from dynamo.kvbm.storage.disk import DiskStorage
from dynamo.kvbm.storage.object_store import ObjectStorage
from dynamo.protocols.kvbm import PoolOptions
from dynamo.transfer import Agent


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTiers:
    """The tiers of one pool; `release` gives back its memory when they are closed."""

    storages: Sequence[Storage]
    release: Callable[[], None]
    peers: PeerTier | None = None  # one of them, that others ask too


class Tiers:
    """Makes them for all pools; they move bytes by one agent. Use it as an async context manager."""

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        self._agent = Agent(f"kvbm-{secrets.token_hex(4)}", backends=[])  # its memory is nobody's to read

    async def __aenter__(self) -> "Tiers":
        await self._agent.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._agent.close()

    def make(self, options: PoolOptions, layout: PoolLayout, arena: HostArena) -> PoolTiers:
        """Raises ConfigError for tiers that cannot be."""
        region = self._agent.register(arena.memory)
        storages: list[Storage] = []
        disk_blocks = options.disk_bytes // layout.slot_bytes
        if disk_blocks and options.disk_dir:
            storages.append(DiskStorage(self._agent, region, layout, options.disk_dir, disk_blocks))
        if options.object_url:
            storages.append(ObjectStorage(self._agent, region, layout, options.object_url))
        peers = PeerTier(self._config, layout, arena) if options.peers else None
        if peers is not None:
            storages.append(peers)
        return PoolTiers(storages=storages, release=lambda: self._agent.deregister(region), peers=peers)
