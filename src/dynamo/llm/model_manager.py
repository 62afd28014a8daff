"""The models that a frontend can serve at this moment, following discovery."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from dynamo.errors import DynamoError, ModelNotFoundError, NoInstancesError
from dynamo.llm.artifacts import ArtifactCache
from dynamo.llm.register import ModelEntry, models_prefix
from dynamo.llm.served_model import ServedModel
from dynamo.router.selection import RouterMode
from dynamo.runtime.discovery.base import Put
from dynamo.runtime.distributed import DistributedRuntime

logger = logging.getLogger(__name__)

_RETRY_S = 1.0
_REMEMBERED_NAMES_MAX = 1024


class ModelManager:
    """Owns every ServedModel: one per name, made when its first worker appears, closed when its last one is gone."""

    def __init__(
        self, runtime: DistributedRuntime, *, namespace: str | None, mode: RouterMode, cache: ArtifactCache
    ) -> None:
        self._runtime = runtime
        self._prefix = models_prefix(namespace)
        self._mode = mode
        self._cache = cache
        self._slots: dict[str, _Slot] = {}
        self._gone: dict[str, None] = {}  # names that had workers once: theirs is a 503, not a 404

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follows discovery within the block."""
        follower = asyncio.create_task(self._follow(), name="model-manager")
        try:
            yield
        finally:
            follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await follower
            for slot in self._slots.values():
                await slot.close()

    def models(self) -> list[ServedModel]:
        """The models that have a worker, by name."""
        served = (slot.served for slot in self._slots.values())
        return sorted((m for m in served if m is not None and m.ready), key=lambda m: m.card.name)

    def get(self, name: str) -> ServedModel:
        """Raises ModelNotFoundError, or NoInstancesError when the model is known but has no worker right now."""
        slot = self._slots.get(name)
        if slot is not None and slot.served is not None and slot.served.ready:
            return slot.served
        if slot is not None or name in self._gone:
            raise NoInstancesError(f"no worker serves the model {name!r} right now")
        ready = self.models()
        if not ready:
            raise NoInstancesError("no worker is up yet")
        names = ", ".join(model.card.name for model in ready)
        raise ModelNotFoundError(f"the model {name!r} does not exist; there is: {names}", param="model")

    async def _follow(self) -> None:
        names: dict[str, str] = {}  # key -> model name
        async for event in self._runtime.discovery.watch(self._prefix):
            if isinstance(event, Put):
                try:
                    entry = ModelEntry.decode(event.value)
                except msgspec.DecodeError as error:
                    logger.warning("ignoring the discovery entry %s: %s", event.key, error)
                    continue
                name = names[event.key] = entry.card.name
                slot = self._slots.get(name)
                if slot is None:
                    slot = self._slots[name] = _Slot(self._make)
                await slot.add(event.key, entry)
            elif (gone := names.pop(event.key, None)) is not None:
                await self._remove(gone, event.key)

    async def _remove(self, name: str, key: str) -> None:
        slot = self._slots[name]
        await slot.remove(key)
        if slot.empty:
            del self._slots[name]
            await slot.close()
            logger.info("the model %r has no worker any more", name)
            self._gone[name] = None
            if len(self._gone) > _REMEMBERED_NAMES_MAX:
                del self._gone[next(iter(self._gone))]

    async def _make(self, entry: ModelEntry) -> ServedModel:
        return await ServedModel.make(entry, self._runtime, self._mode, self._cache)


class _Slot:
    """Everything that is announced under one name.

    Workers whose cards differ cannot share a name: those like the longest-announced one serve it, the others are left
    out until those are gone.
    """

    def __init__(self, make: Callable[[ModelEntry], Awaitable[ServedModel]]) -> None:
        self._make = make
        self._entries: dict[str, ModelEntry] = {}  # in the order of their announcement
        self._builder: asyncio.Task[None] | None = None
        self._identity: tuple[object, str] | None = None  # of what is served or being made
        self.served: ServedModel | None = None

    @property
    def empty(self) -> bool:
        return not self._entries

    async def add(self, key: str, entry: ModelEntry) -> None:
        self._entries[key] = entry
        if _identity(entry) != _identity(next(iter(self._entries.values()))):
            logger.error(
                "instance %x announces another model under the name %r than the workers before it: it gets no requests",
                entry.instance_id,
                entry.card.name,
            )
        await self._update()

    async def remove(self, key: str) -> None:
        self._entries.pop(key, None)
        await self._update()

    async def close(self) -> None:
        if self._builder is not None:
            self._builder.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._builder
            self._builder = None
        if self.served is not None:
            await self.served.close()
            self.served = None

    async def _update(self) -> None:
        """Brings what is served in line with what is announced."""
        if not self._entries:
            return
        chosen = _identity(next(iter(self._entries.values())))
        if chosen != self._identity:
            await self.close()
            self._identity = chosen
            self._builder = asyncio.create_task(self._build(), name="model-builder")
        elif self.served is not None:
            self.served.set_members(self._members())

    def _members(self) -> dict[int, ModelEntry]:
        return {e.instance_id: e for e in self._entries.values() if _identity(e) == self._identity}

    async def _build(self) -> None:
        """Makes the ServedModel with the files of whichever worker gives them."""
        while True:
            for entry in tuple(self._members().values()):
                try:
                    served = await self._make(entry)
                except (DynamoError, TimeoutError) as error:
                    logger.warning(
                        "model %r, instance %x: %s", entry.card.name, entry.instance_id, error or "no answer"
                    )
                else:
                    served.set_members(self._members())
                    self.served = served
                    logger.info("serving the model %r", entry.card.name)
                    return
            await asyncio.sleep(_RETRY_S)


def _identity(entry: ModelEntry) -> tuple[object, str]:
    """Equal for workers that can stand in for each other."""
    return entry.endpoint, entry.card.content_hash
