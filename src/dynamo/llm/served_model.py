"""One model as a frontend serves it: its card, its workers and the request path to them."""

import asyncio
from collections.abc import Iterable

from dynamo.llm.artifacts import ArtifactCache
from dynamo.llm.model_workers import ModelWorkers
from dynamo.llm.pipeline import Pipeline, build_pipeline
from dynamo.llm.register import ModelEntry
from dynamo.llm.routing_setup import RoutingSetup
from dynamo.protocols.model_card import ModelCard
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.instance import Instance

_FILES_TIMEOUT_S = 30.0


class ServedModel:
    """Made by `make`; owns the way to the workers."""

    def __init__(self, card: ModelCard, pipeline: Pipeline, workers: ModelWorkers) -> None:
        self.card = card
        self.pipeline = pipeline
        self._workers = workers

    @classmethod
    async def make(
        cls, entry: ModelEntry, runtime: DistributedRuntime, routing: RoutingSetup, cache: ArtifactCache
    ) -> "ServedModel":
        """Fetches the model's files from the entry's instance and builds the request path.

        Raises the DynamoError of the call, ProtocolError for wrong files, ConfigError for unusable ones, TimeoutError.
        """
        files = await _fetch(entry, runtime, cache)
        workers = ModelWorkers(entry, runtime, routing)
        try:
            # Parsing a tokenizer takes long enough to be felt by everybody else's streams.
            pipeline = await asyncio.to_thread(build_pipeline, entry.card, files, workers.router)
        except BaseException:
            await workers.close()
            raise
        return cls(entry.card, pipeline, workers)

    @property
    def ready(self) -> bool:
        """Whether a worker is there."""
        return self._workers.ready

    def instances(self) -> list[Instance]:
        """The workers that a request could go to."""
        return self._workers.instances()

    def set_members(self, entries: Iterable[ModelEntry]) -> None:
        """Which instances of the endpoint serve this model."""
        self._workers.set_members(entries)

    async def close(self) -> None:
        await self._workers.close()


async def _fetch(entry: ModelEntry, runtime: DistributedRuntime, cache: ArtifactCache) -> dict[str, bytes]:
    if not entry.card.artifacts:
        return {}
    client = runtime.client(entry.files_endpoint)
    try:
        async with asyncio.timeout(_FILES_TIMEOUT_S):
            while entry.instance_id not in await client.wait_for_instances():
                await client.wait_for_change()
            return await cache.load(entry.card, client, entry.instance_id)
    finally:
        await client.close()
