"""Workers that serve feeds of KV events, and routers that follow them, over request planes that are there."""

from dataclasses import dataclass, field
from typing import Any

from dynamo.protocols.kv_events import KvEvent, KvEventBatch, Tier
from dynamo.router.indexer import KvIndexer
from dynamo.router.publisher import KV_EVENTS_ENDPOINT, KvEventFeed
from dynamo.router.subscriber import FeedSubscriber
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.runtime.distributed import SharedParts
from dynamo.runtime.event_feed import FeedItem
from dynamo.testing import within

from .feed_world import replace

GENERATE = "test.backend.generate"
KV_EVENTS = f"test.backend.{KV_EVENTS_ENDPOINT}"
BACKOFF_S = 0.01
BEAT_S = 0.02


def batch(*events: KvEvent, dp_rank: int = 0) -> KvEventBatch:
    return KvEventBatch(dp_rank, list(events))


@dataclass(slots=True)
class Worker:
    runtime: DistributedRuntime
    feed: KvEventFeed

    @property
    def id(self) -> int:
        return self.runtime.instance_id


@dataclass(slots=True)
class Router:
    runtime: DistributedRuntime
    indexer: KvIndexer
    subscriber: FeedSubscriber

    def knows(self, worker: Worker) -> bool:
        """Whether the index says of a worker what it holds, no more and no less."""
        return contents(self.indexer, worker.id) == held(worker)

    async def close(self) -> None:
        await within(self.subscriber.close())
        await within(self.runtime.close())


def contents(indexer: KvIndexer, instance_id: int) -> set[tuple[int, Tier, int]]:
    return {
        (worker.dp_rank, tier, block)
        for worker, tier, hashes in indexer.tree.dump()
        for block in hashes
        if worker.instance_id == instance_id
    }


def held(worker: Worker) -> set[tuple[int, Tier, int]]:
    known = KvIndexer()
    replace(known, worker.id, worker.feed.held.dump())
    return contents(known, worker.id)


@dataclass(slots=True)
class Cluster:
    config: RuntimeConfig
    shared: SharedParts = field(default_factory=SharedParts)
    runtimes: list[DistributedRuntime] = field(default_factory=list)

    def runtime(self) -> DistributedRuntime:
        self.runtimes.append(DistributedRuntime(config=self.config, shared=self.shared))
        return self.runtimes[-1]

    async def worker(self, **bounds: int) -> Worker:
        runtime, feed = self.runtime(), KvEventFeed(**bounds)
        await feed.start(runtime.endpoint(GENERATE))
        return Worker(runtime, feed)

    async def raw_worker(self, handler: Any) -> int:
        """A worker with a handler of its own instead of a feed."""
        runtime = self.runtime()
        await runtime.endpoint(KV_EVENTS).start(handler)
        return runtime.instance_id

    async def router(self) -> Router:
        runtime, indexer = self.runtime(), KvIndexer()
        client = await runtime.endpoint(KV_EVENTS).client(response_type=FeedItem)
        subscriber = FeedSubscriber(client, indexer, event_plane=runtime.event_plane, backoff_min_s=BACKOFF_S)
        return Router(runtime, indexer, subscriber)


async def break_connections(worker: Worker) -> int:
    """Cuts all connections that others have to a worker; returns how many there were."""
    listener: Any = worker.runtime._listener
    connections = tuple(listener._connections)
    for connection in connections:
        await connection.close()
    return len(connections)
