"""Workers with an engine of their own tell what it holds and how busy it is."""

from collections.abc import AsyncIterator

import pytest

from dynamo.protocols.generation import WorkerId
from dynamo.protocols.kv_events import Tier
from dynamo.protocols.load import LOAD_ENDPOINT, WorkerLoad
from dynamo.router.indexer import KvIndexer
from dynamo.router.publisher import KV_EVENTS_ENDPOINT, KvEventPublisher, WorkerMetricsPublisher
from dynamo.router.radix_tree import Overlap
from dynamo.router.subscriber import FeedSubscriber
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.runtime.event_feed import FeedItem
from dynamo.testing import eventually, within
from dynamo.tokens import HashArray, block_seed, sequence_hashes, token_array

BLOCK_SIZE = 4
PROMPT = list(range(14))
NAMES = sequence_hashes(token_array(PROMPT), BLOCK_SIZE)


@pytest.fixture
async def runtime() -> AsyncIterator[DistributedRuntime]:
    runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    yield runtime
    await within(runtime.close())


class TestKvEvents:
    @pytest.fixture
    def publisher(self, runtime: DistributedRuntime) -> KvEventPublisher:
        return KvEventPublisher(runtime.endpoint("test.backend.generate"), kv_block_size=BLOCK_SIZE)

    @pytest.fixture
    async def indexer(self, runtime: DistributedRuntime) -> AsyncIterator[KvIndexer]:
        """What a router knows."""
        indexer = KvIndexer()
        endpoint = runtime.endpoint(f"test.backend.{KV_EVENTS_ENDPOINT}")
        subscriber = FeedSubscriber(await endpoint.client(response_type=FeedItem), indexer)
        yield indexer
        await subscriber.close()

    async def found(self, indexer: KvIndexer, hashes: HashArray, overlaps: dict[WorkerId, Overlap]) -> None:
        await eventually(lambda: indexer.tree.find_matches(hashes).overlaps == overlaps)

    async def test_blocks_come_and_go(
        self, runtime: DistributedRuntime, publisher: KvEventPublisher, indexer: KvIndexer
    ) -> None:
        worker = WorkerId(runtime.instance_id)
        publisher.publish_stored(PROMPT[:8], [4, 4], [71, 72])
        await publisher.start()
        await self.found(indexer, NAMES, {worker: Overlap(device=2)})
        publisher.publish_stored(PROMPT[8:12], [4], [73], parent_hash=72)
        publisher.publish_stored(PROMPT[:8], [4, 4], [71, 72], tier=Tier.HOST)
        await self.found(indexer, NAMES, {worker: Overlap(device=3)})
        publisher.publish_removed([73, 72, 5])
        await self.found(indexer, NAMES, {worker: Overlap(device=1, host=1)})
        publisher.publish_removed([72], tier=Tier.HOST)
        await self.found(indexer, NAMES, {worker: Overlap(device=1)})
        publisher.publish_cleared()
        await self.found(indexer, NAMES, {})
        assert publisher.unnamed == 0

    async def test_ranks_of_one_instance(
        self, runtime: DistributedRuntime, publisher: KvEventPublisher, indexer: KvIndexer
    ) -> None:
        await publisher.start()
        second = publisher.for_rank(1)
        second.publish_stored(PROMPT[:8], [4, 4], [71, 72])
        publisher.publish_stored(PROMPT[:4], [4], [71])
        here = runtime.instance_id
        await self.found(indexer, NAMES, {WorkerId(here, 0): Overlap(1), WorkerId(here, 1): Overlap(2)})
        second.publish_cleared()
        await self.found(indexer, NAMES, {WorkerId(here, 0): Overlap(1)})

    async def test_adapter_and_salt_are_part_of_the_name(
        self, runtime: DistributedRuntime, publisher: KvEventPublisher, indexer: KvIndexer
    ) -> None:
        await publisher.start()
        publisher.publish_stored(PROMPT[:4], [4], [1], lora_name="adapter", cache_salt="salt")
        publisher.publish_stored(PROMPT[4:8], [4], [2], parent_hash=1)
        names = sequence_hashes(token_array(PROMPT), BLOCK_SIZE, block_seed("adapter", "salt"))
        await self.found(indexer, names, {WorkerId(runtime.instance_id): Overlap(device=2)})
        assert not indexer.tree.find_matches(NAMES).overlaps

    async def test_blocks_that_are_not_full_are_left_out(
        self, runtime: DistributedRuntime, publisher: KvEventPublisher, indexer: KvIndexer
    ) -> None:
        await publisher.start()
        publisher.publish_stored(PROMPT, [4, 4, 4, 2], [1, 2, 3, 4])
        await self.found(indexer, NAMES, {WorkerId(runtime.instance_id): Overlap(device=3)})
        publisher.publish_stored(PROMPT[:2], [2], [1])
        publisher.publish_stored(PROMPT[:4], [4], [9], parent_hash=8)
        assert publisher.unnamed == 3


async def test_load(runtime: DistributedRuntime) -> None:
    publisher = WorkerMetricsPublisher()
    await publisher.create_endpoint(runtime.endpoint("test.backend.generate"))
    endpoint = runtime.endpoint(f"test.backend.{LOAD_ENDPOINT}")
    client = await endpoint.client(response_type=list[WorkerLoad])

    async def asked() -> list[WorkerLoad]:
        (answer,) = [answer async for answer in await client.generate(None, annotated=False)]
        return answer  # type: ignore[no-any-return]

    assert await within(asked()) == []
    publisher.publish(WorkerLoad(dp_rank=1, running_requests=3))
    publisher.publish(WorkerLoad(kv_used_blocks=5))
    publisher.publish(WorkerLoad(kv_used_blocks=6))
    assert await within(asked()) == [WorkerLoad(kv_used_blocks=6), WorkerLoad(dp_rank=1, running_requests=3)]
