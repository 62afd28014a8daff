"""The models that a frontend can serve at this moment, following discovery."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from dynamo.errors import ModelNotFoundError, NoInstancesError
from dynamo.llm.artifacts import ArtifactCache
from dynamo.llm.model_slot import ModelSlot
from dynamo.llm.register import ModelEntry, announced, models_prefix
from dynamo.llm.routing_setup import RoutingSetup
from dynamo.llm.served_model import ServedModel
from dynamo.router.selection import RouterMode
from dynamo.runtime.background import in_background
from dynamo.runtime.discovery.base import Put, Watch
from dynamo.runtime.distributed import DistributedRuntime

logger = logging.getLogger(__name__)

_REMEMBERED_NAMES_MAX = 1024


class ModelManager:
    """Owns every ServedModel: one per name, made when its first worker appears, closed when its last one is gone.

    Where requests are under way then, it is closed after them: they can go on at a worker that comes in time.
    """

    def __init__(
        self, runtime: DistributedRuntime, *, namespace: str | None, routing: RoutingSetup, cache: ArtifactCache
    ) -> None:
        self._runtime = runtime
        self._prefix = models_prefix(namespace)
        self._routing = routing
        self._cache = cache
        self._slots: dict[str, ModelSlot] = {}
        self._leaving: set[ModelSlot] = set()  # being closed
        self._unused: set[ModelSlot] = set()  # without workers, which somebody waits to close after their last requests
        self._closing: set[asyncio.Task[None]] = set()  # who does
        self._gone: dict[str, None] = {}  # names that had workers once: theirs is a 503, not a 404

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[asyncio.Task[None]]:
        """Follows discovery within the block, by the task that it gives: it ends only if something goes wrong.

        Raises ConfigError when discovery cannot be used.
        """
        watch = self._runtime.discovery.watch(self._prefix)
        follower = asyncio.create_task(self._follow(watch), name="model-manager")
        try:
            yield follower
        finally:
            follower.cancel()
            await asyncio.wait({follower})
            for task in self._closing:
                task.cancel()
            if self._closing:
                await asyncio.wait(self._closing)
            watch.close()
            for slot in (*self._slots.values(), *self._leaving):
                await slot.close()

    def models(self) -> list[ServedModel]:
        """The models that have a worker, by name."""
        served = (slot.served for slot in self._slots.values())
        return sorted((m for m in served if m is not None and m.ready), key=lambda m: m.card.name)

    def get(self, name: str, sees: Callable[[str], bool] = lambda _: True) -> ServedModel:
        """Raises ModelNotFoundError, or NoInstancesError when the model is known but has no worker right now.

        For whoever asks there are only the models whose name `sees` is true of.
        """
        if not sees(name):
            raise ModelNotFoundError(f"the model {name!r} does not exist, or is not for you", param="model")
        slot = self._slots.get(name)
        if slot is not None and slot.served is not None and slot.served.ready:
            return slot.served
        if slot is not None or name in self._gone:
            reason = ": there are only prefill workers" if slot is not None and slot.only_prefills else ""
            raise NoInstancesError(f"no worker serves the model {name!r} right now{reason}")
        if not self._slots and not self._gone:
            raise NoInstancesError("no worker is up yet")
        names = ", ".join(filter(sees, (model.card.name for model in self.models()))) or "none right now"
        raise ModelNotFoundError(f"the model {name!r} does not exist; there is: {names}", param="model")

    async def _follow(self, watch: Watch) -> None:
        names: dict[str, str] = {}  # key -> model name
        same_blocks = self._routing.mode is RouterMode.KV
        async for event in watch:
            if isinstance(event, Put):
                if (entry := announced(event)) is None:
                    continue
                name = names[event.key] = entry.card.name
                slot = self._slots.get(name)
                if slot is None:
                    slot = self._slots[name] = ModelSlot(name, self._make, same_blocks=same_blocks)
                await slot.add(event.key, entry)
            elif (gone := names.pop(event.key, None)) is not None:
                await self._remove(gone, event.key)

    async def _remove(self, name: str, key: str) -> None:
        slot = self._slots[name]
        await slot.remove(key)
        if not slot.empty:
            return
        logger.info("the model %r has no worker any more", name)
        if slot.idle:
            await self._close(name, slot)
        elif slot not in self._unused:
            self._unused.add(slot)
            task = in_background(self._close_unused(name, slot), f"close {name}")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close_unused(self, name: str, slot: ModelSlot) -> None:
        await slot.until_idle()
        self._unused.discard(slot)
        if slot.empty and self._slots.get(name) is slot:
            await self._close(name, slot)

    async def _close(self, name: str, slot: ModelSlot) -> None:
        """A worker that comes meanwhile gets a slot of its own."""
        self._leaving.add(slot)  # whoever cancels this closes it
        del self._slots[name]
        self._gone[name] = None
        if len(self._gone) > _REMEMBERED_NAMES_MAX:
            del self._gone[next(iter(self._gone))]
        await slot.close()
        self._leaving.remove(slot)

    async def _make(self, entry: ModelEntry) -> ServedModel:
        return await ServedModel.make(entry, self._runtime, self._routing, self._cache)
