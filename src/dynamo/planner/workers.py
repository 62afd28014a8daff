"""The workers of a namespace, and what each of them does, as discovery tells."""

from collections.abc import Mapping

from dynamo.llm.register import ModelEntry, apply_announcement, models_prefix
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.discovery.base import Discovery, Put
from dynamo.runtime.instance import INSTANCES_PREFIX, EndpointId


class Workers:
    """Follows the workers that announce a model, and that take requests for it now."""

    def __init__(self, discovery: Discovery, namespace: str, model: str | None = None) -> None:
        """`model` is the one whose workers these are; None: of any."""
        self._model = model
        self._announcements = discovery.watch(models_prefix(namespace))
        self._serving = discovery.watch(f"{INSTANCES_PREFIX}{namespace}/")
        self._entries: dict[str, ModelEntry] = {}  # by discovery key
        self._instances: set[str] = set()  # discovery keys of those that take requests

    def by_role(self) -> Mapping[WorkerType, Mapping[int, EndpointId]]:
        """Where each worker takes requests, by its instance id. A role that nobody has is left out."""
        self._take_news()
        found: dict[WorkerType, dict[int, EndpointId]] = {}
        for entry in self._entries.values():
            if self._model in (None, entry.card.name) and _instance_key(entry) in self._instances:
                found.setdefault(entry.card.worker_type, {})[entry.instance_id] = entry.endpoint
        return found

    def close(self) -> None:
        self._announcements.close()
        self._serving.close()

    def _take_news(self) -> None:
        for event in self._announcements.take():
            apply_announcement(self._entries, event)
        for event in self._serving.take():
            if isinstance(event, Put):
                self._instances.add(event.key)
            else:
                self._instances.discard(event.key)


def _instance_key(entry: ModelEntry) -> str:
    return f"{entry.endpoint.instances_prefix}{entry.instance_id:x}"
