"""The workers of one model, and the way to them."""

from collections.abc import Iterable

from dynamo.llm.register import ModelEntry
from dynamo.llm.routing_setup import RoutingSetup
from dynamo.protocols.model_card import ModelCard, WorkerType
from dynamo.router.kv_placer import KvPlacer
from dynamo.router.push_router import PushRouter
from dynamo.router.remote_placer import RemotePlacer
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.instance import Instance
from dynamo.telemetry.migration_metrics import MigrationType


class ModelWorkers:
    """Instances of one endpoint that serve the same model: those that were announced. Owns what it hears of them."""

    def __init__(self, entry: ModelEntry, runtime: DistributedRuntime, routing: RoutingSetup) -> None:
        """`entry` announces one of them."""
        self._entry = entry
        self._metrics = routing.metrics
        self._members: dict[int, ModelCard] = {}
        self._client = runtime.client(entry.endpoint)
        self._placer = routing.placer(entry, runtime)
        self.router = PushRouter(
            self._client,
            self._placer,
            self._members.__contains__,
            self._fetches,
            lost_max=routing.migration.migration_limit,
            on_lost=routing.count_moves(entry.card.name, MigrationType.NEW_REQUEST),
        )
        if self._metrics is not None and isinstance(self._placer, KvPlacer):
            self._metrics.add(entry.card.name, entry.card.worker_type, self._placer)
        self.set_members([entry])

    @property
    def ready(self) -> bool:
        """Whether a worker is there."""
        return bool(self.router.workers())

    def instances(self) -> list[Instance]:
        """The workers that a request could go to."""
        workers = set(self.router.workers())
        return [instance for instance in self._client.instances() if instance.instance_id in workers]

    def can_have(self, entry: ModelEntry) -> bool:
        """Whether it may be one of these workers."""
        card, own = entry.card, self._entry.card
        return entry.endpoint == self._entry.endpoint and card.limits.kv_block_size == own.limits.kv_block_size

    def set_members(self, entries: Iterable[ModelEntry]) -> None:
        """Which instances serve the model."""
        self._members.clear()
        self._members.update({entry.instance_id: entry.card for entry in entries})
        if isinstance(self._placer, KvPlacer | RemotePlacer):
            self._placer.set_instances({instance_id: card.limits for instance_id, card in self._members.items()})

    async def close(self) -> None:
        if self._metrics is not None and isinstance(self._placer, KvPlacer):
            self._metrics.remove(self._entry.card.name, self._entry.card.worker_type, self._placer)
        await self._placer.close()
        await self._client.close()

    def _fetches(self, instance_id: int) -> bool:
        card = self._members.get(instance_id)
        return card is not None and card.worker_type is WorkerType.Decode
