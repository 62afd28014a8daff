"""One model as a frontend serves it: its card, its workers and the request path to them."""

import asyncio
from collections.abc import Iterable, Sequence

from dynamo.llm.artifacts import ArtifactCache
from dynamo.llm.model_workers import ModelWorkers
from dynamo.llm.pipeline import Pipeline, build_pipeline
from dynamo.llm.register import ModelEntry
from dynamo.llm.routing_setup import RoutingSetup
from dynamo.protocols.model_card import ModelCard
from dynamo.router.prefill_router import PrefillRouter
from dynamo.runtime.background import in_background
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.instance import Instance
from dynamo.telemetry.migration_metrics import MigrationType

_FILES_TIMEOUT_S = 30.0


class ServedModel:
    """Made by `make`; owns the way to the workers."""

    def __init__(
        self,
        card: ModelCard,
        pipeline: Pipeline,
        workers: ModelWorkers,
        router: PrefillRouter,
        runtime: DistributedRuntime,
        routing: RoutingSetup,
    ) -> None:
        """`pipeline` ends in `router`, which reaches `workers`; prefill workers may be added to it."""
        self.card = card
        self.pipeline = pipeline
        self._workers = workers
        self._router = router
        self._runtime = runtime
        self._routing = routing
        self._prefill: ModelWorkers | None = None

    @classmethod
    async def make(
        cls, entry: ModelEntry, runtime: DistributedRuntime, routing: RoutingSetup, cache: ArtifactCache
    ) -> "ServedModel":
        """Fetches the model's files from the entry's instance and builds the request path.

        Raises the DynamoError of the call, ProtocolError for wrong files, ConfigError for unusable ones, TimeoutError.
        """
        files = await _fetch(entry, runtime, cache)
        workers = ModelWorkers(entry, runtime, routing)
        router = PrefillRouter(workers.router, routing.disagg)
        try:
            # Parsing a tokenizer takes long enough to be felt by everybody else's streams.
            pipeline = await asyncio.to_thread(
                build_pipeline,
                entry.card,
                files,
                router,
                routing.migration,
                routing.count_moves(entry.card.name, MigrationType.ONGOING_REQUEST),
            )
        except BaseException:
            await asyncio.shield(
                in_background(workers.close(), "workers-of-no-model")
            )  # this may be cancelled meanwhile
            raise
        return cls(entry.card, pipeline, workers, router, runtime, routing)

    @property
    def ready(self) -> bool:
        """Whether a worker is there."""
        return self._workers.ready

    def instances(self) -> list[Instance]:
        """The workers that a request could go to."""
        return self._workers.instances() + (self._prefill.instances() if self._prefill is not None else [])

    def set_members(self, entries: Iterable[ModelEntry]) -> None:
        """Which instances of the endpoint serve this model."""
        self._workers.set_members(entries)

    async def set_prefill_members(self, entries: Sequence[ModelEntry]) -> None:
        """Which instances, of another endpoint, prefill its prompts."""
        if entries and (self._prefill is None or not self._prefill.can_have(entries[0])):
            former, self._prefill = self._prefill, ModelWorkers(entries[0], self._runtime, self._routing)
            self._router.use(self._prefill.router)
            if former is not None:
                await former.close()
            elif self._routing.disagg_metrics is not None:
                self._routing.disagg_metrics.add(self.card.name, self._router.figures)
        if self._prefill is not None:
            self._prefill.set_members(entries)

    async def close(self) -> None:
        if self._prefill is not None:
            if self._routing.disagg_metrics is not None:
                self._routing.disagg_metrics.remove(self.card.name, self._router.figures)
            await self._prefill.close()
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
