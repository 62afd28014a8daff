"""Discovery through etcd, for processes on many hosts.

Entries stand under a lease that this process renews three times in its duration: a process that dies, or is cut off
from etcd for longer, is forgotten. See docs/adr/0009-etcd.md for why it is built as it is.
"""

import asyncio
import contextlib

from dynamo.runtime.discovery.base import Watch
from dynamo.runtime.discovery.etcd_client import EtcdClient
from dynamo.runtime.discovery.etcd_config import EtcdConfig
from dynamo.runtime.discovery.etcd_entries import REGISTER_TIMEOUT_S, EtcdEntries
from dynamo.runtime.discovery.etcd_entry import EtcdEntry
from dynamo.runtime.discovery.etcd_lease import EtcdLease
from dynamo.runtime.discovery.etcd_mirror import EtcdMirror

ROOT = "dynamo-py/"  # what all keys in etcd begin with
_SIGNS_PER_TTL = 3
_OWN_NEWS_S = 2.0


class EtcdRegistration:
    """An entry of this process."""

    def __init__(self, entries: EtcdEntries, entry: EtcdEntry) -> None:
        self._entries = entries
        self._entry = entry
        self.key = entry.key

    async def withdraw(self) -> None:
        await self._entries.remove(self._entry)


class EtcdDiscovery:
    """One process's view of etcd, and its entries there."""

    def __init__(self, config: EtcdConfig, *, root: str = ROOT, register_timeout_s: float = REGISTER_TIMEOUT_S) -> None:
        """Needs a running event loop; ConfigError as EtcdClient. Whether etcd answers shows later."""
        interval_s = config.lease_ttl_s / _SIGNS_PER_TTL
        self._client = EtcdClient(config, timeout_s=interval_s)
        self._mirror = EtcdMirror(
            self._client, root=root.encode(), backoff_max_s=interval_s, grace_s=config.lease_ttl_s
        )
        self._entries = EtcdEntries(
            self._client,
            EtcdLease(self._client, config.lease_ttl_s),
            root=root.encode(),
            renew_interval_s=interval_s,
            register_timeout_s=register_timeout_s,
        )
        self._client.on_dead_endpoint = self._mirror.reconnect

    async def register(self, key: str, value: bytes) -> EtcdRegistration:
        """As Discovery; ConfigError also when etcd does not answer within `register_timeout_s`."""
        entry, revision = await self._entries.add(key, value)
        with contextlib.suppress(TimeoutError):  # it is registered, whatever the watches of this process know
            async with asyncio.timeout(_OWN_NEWS_S):
                await self._mirror.reached(revision)
        return EtcdRegistration(self._entries, entry)

    def watch(self, prefix: str) -> Watch:
        """As Discovery, but what is there follows only when etcd has answered."""
        self._entries.start()
        return self._mirror.watch(prefix)

    async def close(self) -> None:
        await self._mirror.close()
        await self._entries.close()
        await self._client.close()
