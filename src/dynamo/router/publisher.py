"""How a worker tells routers what it holds and how busy it is: endpoints beside the one that generates."""

from dynamo.protocols.kv_events import KvEventBatch
from dynamo.router.held_blocks import HeldBlocks
from dynamo.runtime.component import Endpoint
from dynamo.runtime.event_feed import BYTES_MAX, EVENTS_MAX, EventFeed

KV_EVENTS_ENDPOINT = "kv_events"


class KvEventFeed:
    """The KV events of one instance, and what it holds according to them."""

    def __init__(self, *, events_max: int = EVENTS_MAX, bytes_max: int = BYTES_MAX) -> None:
        """The bounds are EventFeed's."""
        self.held = HeldBlocks()
        self._feed = EventFeed(self.held.dump, events_max=events_max, bytes_max=bytes_max)

    async def start(self, endpoint: Endpoint) -> None:
        """Serves `kv_events` in the namespace and component of `endpoint`, until the runtime shuts down."""
        await self._feed.start(_beside(endpoint, KV_EVENTS_ENDPOINT))

    def publish(self, batch: KvEventBatch) -> None:
        """What has just happened in the cache, before or after start(). An empty batch is nobody's concern.

        Raises ValueError for an event whose hashes are no hashes.
        """
        if batch.events:
            self.held.apply(batch)
            self._feed.publish(batch)


def _beside(endpoint: Endpoint, name: str) -> Endpoint:
    """Another endpoint of the same component and runtime."""
    return endpoint.runtime.endpoint(f"{endpoint.id.namespace}.{endpoint.id.component}.{name}")
