"""The other workers of a worker's model."""

import asyncio
from contextlib import suppress

from dynamo.errors import DynamoError
from dynamo.llm.register import ModelEntry, apply_announcement, models_prefix
from dynamo.protocols.model_card import WorkerType
from dynamo.protocols.role import ROLE_COMPONENT, ROLE_ENDPOINT, RoleRequest, WorkerRole
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.instance import EndpointId

_ANSWER_S = 2.0  # how long one may take to say what it is about to do


class Colleagues:
    """As discovery knows them when it is asked; it is followed from the start, as news may come from another host."""

    def __init__(self, runtime: DistributedRuntime, namespace: str, model: str) -> None:
        self._own_id = runtime.instance_id
        self._model = model
        self._watch = runtime.discovery.watch(models_prefix(namespace))
        self._entries: dict[str, ModelEntry] = {}  # by discovery key
        self._roles = runtime.client(EndpointId(namespace, ROLE_COMPONENT, ROLE_ENDPOINT), WorkerRole)

    async def until_decode(self, timeout_s: float) -> None:
        """Returns when one of them decodes, or after that time: who has just begun may not be known yet."""
        with suppress(TimeoutError, StopAsyncIteration):
            async with asyncio.timeout(timeout_s):
                while not self.decode():
                    apply_announcement(self._entries, await anext(self._watch))

    def decode(self) -> bool:
        """Whether one of them does: those that do all of a request among them."""
        for event in self._watch.take():
            apply_announcement(self._entries, event)
        return bool(self._decoding())

    async def decode_on(self) -> bool:
        """Whether one of them does and is not about to leave off: each is asked, as its entry goes a little later."""
        return any(await asyncio.gather(*(self._stays(entry) for entry in self._decoding())))

    async def close(self) -> None:
        self._watch.close()
        await self._roles.close()

    def _decoding(self) -> list[ModelEntry]:
        return [
            entry
            for entry in self._entries.values()
            if entry.card.name == self._model
            and entry.card.worker_type is not WorkerType.Prefill
            and entry.instance_id != self._own_id
        ]

    async def _stays(self, entry: ModelEntry) -> bool:
        if entry.instance_id not in self._roles.instance_ids():
            return True  # it has no other role
        try:
            async with asyncio.timeout(_ANSWER_S):
                state: WorkerRole = await self._roles.ask(RoleRequest(), entry.instance_id)
        except (DynamoError, TimeoutError):
            return False
        return state.role is not WorkerType.Prefill and state.becoming is None
