"""The other workers of a worker's model."""

import asyncio
from contextlib import suppress

from dynamo.llm.register import ModelEntry, announced, models_prefix
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.discovery.base import Event, Put
from dynamo.runtime.distributed import DistributedRuntime


class Colleagues:
    """As discovery knows them when it is asked; it is followed from the start, as news may come from another host."""

    def __init__(self, runtime: DistributedRuntime, namespace: str, model: str) -> None:
        self._own_id = runtime.instance_id
        self._model = model
        self._watch = runtime.discovery.watch(models_prefix(namespace))
        self._entries: dict[str, ModelEntry] = {}  # by discovery key

    async def until_decode(self, timeout_s: float) -> None:
        """Returns when one of them decodes, or after that time: who has just begun may not be known yet."""
        with suppress(TimeoutError, StopAsyncIteration):
            async with asyncio.timeout(timeout_s):
                while not self.decode():
                    self._apply(await anext(self._watch))

    def decode(self) -> bool:
        """Whether one of them does: those that do all of a request among them."""
        for event in self._watch.take():
            self._apply(event)
        return any(
            entry.card.name == self._model
            and entry.card.worker_type is not WorkerType.Prefill
            and entry.instance_id != self._own_id
            for entry in self._entries.values()
        )

    def close(self) -> None:
        self._watch.close()

    def _apply(self, event: Event) -> None:
        if not isinstance(event, Put):
            self._entries.pop(event.key, None)
        elif (entry := announced(event)) is not None:
            self._entries[event.key] = entry
