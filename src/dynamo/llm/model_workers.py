"""The workers of one model, and the way to them."""

from collections.abc import Iterable

from dynamo.llm.register import ModelEntry
from dynamo.llm.routing_setup import RoutingSetup
from dynamo.protocols.model_card import RuntimeLimits
from dynamo.router.kv_placer import KvPlacer
from dynamo.router.push_router import PushRouter
from dynamo.router.remote_placer import RemotePlacer
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.instance import Instance


class ModelWorkers:
    """Instances of one endpoint that serve the same model: those that were announced. Owns what it hears of them."""

    def __init__(self, entry: ModelEntry, runtime: DistributedRuntime, routing: RoutingSetup) -> None:
        """`entry` announces one of them."""
        self._model = entry.card.name
        self._metrics = routing.metrics
        self._members: dict[int, RuntimeLimits] = {}
        self._client = runtime.client(entry.endpoint)
        self._placer = routing.placer(entry, runtime)
        self.router = PushRouter(self._client, self._placer, self._members.__contains__)
        if self._metrics is not None and isinstance(self._placer, KvPlacer):
            self._metrics.add(self._model, self._placer)
        self.set_members([entry])

    @property
    def ready(self) -> bool:
        """Whether a worker is there."""
        return bool(self.router.workers())

    def instances(self) -> list[Instance]:
        """The workers that a request could go to."""
        workers = set(self.router.workers())
        return [instance for instance in self._client.instances() if instance.instance_id in workers]

    def set_members(self, entries: Iterable[ModelEntry]) -> None:
        """Which instances serve the model."""
        self._members.clear()
        self._members.update({entry.instance_id: entry.card.limits for entry in entries})
        if isinstance(self._placer, KvPlacer | RemotePlacer):
            self._placer.set_instances(self._members)

    async def close(self) -> None:
        if self._metrics is not None and isinstance(self._placer, KvPlacer):
            self._metrics.remove(self._model, self._placer)
        await self._placer.close()
        await self._client.close()
