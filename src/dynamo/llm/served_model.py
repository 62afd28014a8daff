"""One model as a frontend serves it: its card, its workers and the request path to them."""

import asyncio
import random
from collections.abc import Iterable

from dynamo.llm.artifacts import ArtifactCache
from dynamo.llm.pipeline import Pipeline, build_pipeline
from dynamo.llm.register import ModelEntry
from dynamo.protocols.model_card import ModelCard
from dynamo.router.placement import SelectorPlacer
from dynamo.router.push_router import PushRouter
from dynamo.router.selection import RouterMode
from dynamo.runtime.client import Client
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.instance import Instance

_FILES_TIMEOUT_S = 30.0


class ServedModel:
    """Made by `make`; owns the client of the workers' endpoint."""

    def __init__(
        self, card: ModelCard, client: Client, router: PushRouter, pipeline: Pipeline, members: set[int]
    ) -> None:
        self.card = card
        self.pipeline = pipeline
        self._client = client
        self._router = router
        self._members = members

    @classmethod
    async def make(
        cls, entry: ModelEntry, runtime: DistributedRuntime, mode: RouterMode, cache: ArtifactCache
    ) -> "ServedModel":
        """Fetches the model's files from the entry's instance and builds the request path.

        Raises the DynamoError of the call, ProtocolError for wrong files, ConfigError for unusable ones, TimeoutError.
        """
        files = await _fetch(entry, runtime, cache)
        members = {entry.instance_id}
        client = runtime.client(entry.endpoint)
        router = PushRouter(client, SelectorPlacer(mode, random.Random()), members.__contains__)  # noqa: S311
        try:
            # Parsing a tokenizer takes long enough to be felt by everybody else's streams.
            pipeline = await asyncio.to_thread(build_pipeline, entry.card, files, router)
        except BaseException:
            await client.close()
            raise
        return cls(entry.card, client, router, pipeline, members)

    @property
    def ready(self) -> bool:
        """Whether a worker is there."""
        return bool(self._router.workers())

    def instances(self) -> list[Instance]:
        """The workers that a request could go to."""
        workers = set(self._router.workers())
        return [instance for instance in self._client.instances() if instance.instance_id in workers]

    def set_members(self, instance_ids: Iterable[int]) -> None:
        """Which instances of the endpoint serve this model."""
        self._members.clear()
        self._members.update(instance_ids)

    async def close(self) -> None:
        await self._client.close()


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
