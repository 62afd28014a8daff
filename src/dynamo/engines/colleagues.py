"""The other workers of a worker's model."""

from dynamo.llm.register import ModelEntry, announced, models_prefix
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.discovery.base import Put
from dynamo.runtime.distributed import DistributedRuntime


class Colleagues:
    """As discovery knows them when it is asked; it is followed from the start, as news may come from another host."""

    def __init__(self, runtime: DistributedRuntime, namespace: str, model: str) -> None:
        self._own_id = runtime.instance_id
        self._model = model
        self._watch = runtime.discovery.watch(models_prefix(namespace))
        self._entries: dict[str, ModelEntry] = {}  # by discovery key

    def decode(self) -> bool:
        """Whether one of them does: those that do all of a request among them."""
        for event in self._watch.take():
            if not isinstance(event, Put):
                self._entries.pop(event.key, None)
            elif (entry := announced(event)) is not None:
                self._entries[event.key] = entry
        return any(
            entry.card.name == self._model
            and entry.card.worker_type is not WorkerType.Prefill
            and entry.instance_id != self._own_id
            for entry in self._entries.values()
        )

    def close(self) -> None:
        self._watch.close()
