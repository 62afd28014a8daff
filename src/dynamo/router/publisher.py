"""How a worker tells routers what it holds and how busy it is: endpoints beside the one that generates.

Workers with an LLMEngine do this by themselves. `KvEventPublisher` and `WorkerMetricsPublisher` are for those who
serve an engine of their own:

    publisher = KvEventPublisher(endpoint, kv_block_size=16)
    await publisher.start()
    publisher.publish_stored(token_ids, [16, 16], [engine_hash_1, engine_hash_2])
"""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial

from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent, KvEventBatch, Tier
from dynamo.protocols.load import WorkerLoad
from dynamo.router.block_names import BlockNames, EngineHash
from dynamo.router.held_blocks import HeldBlocks
from dynamo.router.load_publisher import serve_load
from dynamo.runtime.background import in_background
from dynamo.runtime.component import Endpoint
from dynamo.runtime.event_feed import BYTES_MAX, EVENTS_MAX, EventFeed
from dynamo.tokens import block_seed, hashes_to_bytes, token_array

KV_EVENTS_ENDPOINT = "kv_events"


class KvEventFeed:
    """The KV events of one instance, and what it holds according to them."""

    def __init__(self, *, events_max: int = EVENTS_MAX, bytes_max: int = BYTES_MAX) -> None:
        """The bounds are EventFeed's."""
        self.held = HeldBlocks()
        self._new_feed = partial(EventFeed, self.held.dump, events_max=events_max, bytes_max=bytes_max)
        self._feed = self._new_feed()
        self._endpoint: Endpoint | None = None  # where it is served
        self._closed = False
        self._withdrawing: asyncio.Task[None] | None = None

    async def start(self, endpoint: Endpoint) -> None:
        """Serves `kv_events` beside `endpoint`, until close() or until the runtime shuts down."""
        self._endpoint = Endpoint(endpoint.runtime, endpoint.id.beside(KV_EVENTS_ENDPOINT))
        await self._feed.start(self._endpoint)
        if self._closed:
            self._withdraw(self._endpoint)

    def stop(self) -> None:
        """Ends the streams of all subscribers. The feed may start anew elsewhere, with a dump of what is held then."""
        self._feed.close()
        self._feed = self._new_feed()
        self._endpoint = None

    def publish(self, batch: KvEventBatch) -> None:
        """What has just happened in the cache, before or after start(). An empty batch is nobody's concern.

        Raises ValueError for an event whose hashes are no hashes.
        """
        if batch.events:
            self.held.apply(batch)
            self._feed.publish(batch)

    def close(self) -> None:
        """Nothing more is known of the cache: routers forget what they have heard. Idempotent."""
        if not self._closed and self._endpoint is not None:
            self._withdraw(self._endpoint)
        self._closed = True

    def _withdraw(self, endpoint: Endpoint) -> None:
        self._feed.close()
        withdrawing = endpoint.runtime.stop_serving(endpoint.id)
        self._withdrawing = in_background(withdrawing, f"withdraw-{endpoint}")


class KvEventPublisher:
    """Tells routers what one data-parallel rank holds, in the engine's own words. For the event loop's thread."""

    def __init__(
        self, endpoint: Endpoint, *, kv_block_size: int, dp_rank: int = 0, feed: KvEventFeed | None = None
    ) -> None:
        """`endpoint` is the one that generates, `kv_block_size` in tokens; `feed` for a second rank: see for_rank()."""
        self._endpoint = endpoint
        self._block_size = kv_block_size
        self._dp_rank = dp_rank
        self._feed = feed or KvEventFeed()
        self._names = BlockNames()

    async def start(self) -> None:
        """Serves the events, of all ranks; to be called once. What was published before is not lost."""
        await self._feed.start(self._endpoint)

    def for_rank(self, dp_rank: int) -> "KvEventPublisher":
        """A publisher for another rank of the same instance."""
        return KvEventPublisher(self._endpoint, kv_block_size=self._block_size, dp_rank=dp_rank, feed=self._feed)

    @property
    def unnamed(self) -> int:
        """Blocks that routers were not told of; the log has the reason."""
        return self._names.unnamed

    def publish_stored(
        self,
        token_ids: Iterable[int],
        num_block_tokens: Sequence[int],
        block_hashes: Sequence[EngineHash],
        parent_hash: EngineHash | None = None,
        lora_name: str | None = None,
        cache_salt: str | None = None,
        *,
        tier: Tier = Tier.DEVICE,
    ) -> None:
        """Consecutive blocks came into the cache: their tokens, how many in each, and how the engine calls them.

        `parent_hash` is the block before them, None at the start of a sequence. Blocks that are not full, and blocks
        whose parent was never stored, cannot be found by their prefix and are left out.
        """
        full = 0
        while full < len(num_block_tokens) and num_block_tokens[full] == self._block_size:
            full += 1
        if full < len(num_block_tokens):
            self._names.drop(len(num_block_tokens) - full, f"they have not {self._block_size} tokens")
        tokens = token_array(token_ids)[: full * self._block_size]
        seed = block_seed(lora_name, cache_salt)
        hashes = self._names.stored(tokens, self._block_size, block_hashes[:full], parent_hash, seed=seed, tier=tier)
        if hashes:
            self._publish(BlockStored(hashes_to_bytes(hashes), tier))

    def publish_removed(self, block_hashes: Sequence[EngineHash], *, tier: Tier = Tier.DEVICE) -> None:
        """Blocks left the cache. Unknown ones are no mistake."""
        hashes = self._names.removed(block_hashes, tier)
        if hashes:
            self._publish(BlockRemoved(hashes_to_bytes(hashes), tier))

    def publish_cleared(self) -> None:
        """The cache of this rank is empty."""
        self._names.clear()
        self._publish(AllBlocksCleared())

    def _publish(self, event: KvEvent) -> None:
        self._feed.publish(KvEventBatch(self._dp_rank, [event]))


class WorkerMetricsPublisher:
    """Tells routers how busy a worker is: the latest WorkerLoad of each data-parallel rank."""

    def __init__(self) -> None:
        self._loads: dict[int, WorkerLoad] = {}

    async def create_endpoint(self, endpoint: Endpoint) -> None:
        """Serves `load` in the namespace and component of `endpoint`, until the runtime shuts down."""
        await serve_load(endpoint, self._load)

    def publish(self, load: WorkerLoad) -> None:
        """How busy the rank that `load` names is from now on."""
        self._loads[load.dp_rank] = load

    def _load(self) -> list[WorkerLoad]:
        return [self._loads[dp_rank] for dp_rank in sorted(self._loads)]
