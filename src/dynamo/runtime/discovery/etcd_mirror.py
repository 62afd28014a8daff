"""A process's copy of what stands in etcd under one prefix, and those who follow it.

A snapshot, then every change after it. Whenever the stream of changes breaks, for whatever reason, there is a new
snapshot, and watchers are told how it differs from what they know. While etcd is away they keep what they know. After
an outage in which leases may have ended, and when etcd has lost its data, those who are well have yet to register anew:
for some seconds nobody is forgotten. Who is dead is seen by those who call.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable

from dynamo.runtime.background import kept_up
from dynamo.runtime.backoff import Backoff
from dynamo.runtime.discovery.base import Delete, Event, Put, Watch
from dynamo.runtime.discovery.etcd_client import EtcdClient
from dynamo.runtime.discovery.etcd_errors import EtcdError
from dynamo.runtime.discovery.etcd_messages import KeyValue, RangeRequest, RangeResponse, WatchResponse
from dynamo.runtime.discovery.etcd_view import EtcdView

logger = logging.getLogger(__name__)

_BACKOFF_MIN_S = 0.1


class EtcdMirror:
    """Follows etcd from the first watch on. `grace_s` is how long nobody is forgotten after an outage."""

    def __init__(self, client: EtcdClient, *, root: bytes, backoff_max_s: float, grace_s: float) -> None:
        self._client = client
        self._root = root
        self._end = root[:-1] + bytes([root[-1] + 1])  # the first key after all that begin with root
        self._backoff = Backoff(_BACKOFF_MIN_S, backoff_max_s)
        self._grace_s = grace_s
        self._view = EtcdView()
        self._revision = 0
        self._synced_at_s = 0.0
        self._advanced = asyncio.Event()
        self._watches: list[Watch] = []
        self._following: asyncio.Timeout | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._follower: asyncio.Task[None] | None = None

    def watch(self, prefix: str) -> Watch:
        watch = Watch(prefix, self._watches.remove)
        for put in self._view.puts():
            watch.publish(put)
        self._watches.append(watch)
        if self._follower is None:
            self._follower = kept_up(self._follow, "etcd-mirror")
        return watch

    async def reached(self, revision: int) -> None:
        """Waits until a change that was made in etcd has been told to the watchers, if there are any."""
        while self._follower is not None and self._revision < revision:
            self._advanced.clear()
            await self._advanced.wait()

    def reconnect(self) -> None:
        """Another connection has found an endpoint dead: the one that changes come by may never notice."""
        if self._following is not None and not self._following.expired():
            self._following.reschedule(0)

    async def close(self) -> None:
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.wait([self._follower])
        if self._settling is not None:
            self._settling.cancel()
        for watch in tuple(self._watches):
            watch.close()

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            try:
                await self._take_snapshot()
                await self._take_changes()
            except EtcdError as error:
                self._client.complain(error)
            except TimeoutError:
                logger.debug("following etcd by a new connection")
            if loop.time() - started_s > self._backoff.max_s:  # a stream that etcd ends at once is no success
                self._backoff.reset()
            await asyncio.sleep(self._backoff.next_s())

    async def _take_snapshot(self) -> None:
        snapshot = await self._client.call("/v3/kv/range", RangeRequest(self._root, self._end), RangeResponse)
        if self._client.recovered_at_s > self._synced_at_s or snapshot.header.revision < self._revision:
            self._doubt()
        self._synced_at_s = asyncio.get_running_loop().time()
        self._publish(self._view.replace({self._key(kv): kv.value for kv in snapshot.kvs}))
        self._advance(snapshot.header.revision)

    async def _take_changes(self) -> None:
        """Returns when etcd ends the stream, as after a compaction; TimeoutError at `reconnect()`."""
        responses = self._client.watch(self._root, self._end, self._revision + 1)
        try:
            async with asyncio.timeout(None) as self._following, contextlib.aclosing(responses):
                async for response in responses:
                    if response.canceled:
                        return
                    self._apply(response)
        finally:
            self._following = None

    def _apply(self, response: WatchResponse) -> None:
        for event in response.events:
            key = self._key(event.kv)
            self._publish(self._view.apply(Delete(key) if event.type == "DELETE" else Put(key, event.kv.value)))
        self._advance(max(response.header.revision, self._revision))

    def _doubt(self) -> None:
        logger.warning("etcd was away for long, or has lost its data: forgetting nobody for %g s", self._grace_s)
        self._view.doubt()
        if self._settling is not None:
            self._settling.cancel()
        self._settling = asyncio.get_running_loop().call_later(
            self._grace_s, lambda: self._publish(self._view.settle())
        )

    def _publish(self, events: Iterable[Event]) -> None:
        for event in events:
            for watch in self._watches:
                watch.publish(event)

    def _advance(self, revision: int) -> None:
        self._revision = revision
        self._advanced.set()

    def _key(self, kv: KeyValue) -> str:
        return kv.key.removeprefix(self._root).decode(errors="replace")
