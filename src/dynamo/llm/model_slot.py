"""Everything that is announced under one model name, and what of it is served."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection

from dynamo.errors import DynamoError
from dynamo.llm.register import ModelEntry
from dynamo.llm.served_model import ServedModel
from dynamo.runtime.instance import EndpointId

logger = logging.getLogger(__name__)

_RETRY_S = 1.0


class ModelSlot:
    """Workers whose cards differ cannot share a name: most of them serve it (if equally many: those there first).

    The others get no requests. The choice depends on nothing but who is there, so that all frontends choose alike.
    """

    def __init__(self, make: Callable[[ModelEntry], Awaitable[ServedModel]], *, same_blocks: bool = False) -> None:
        """`same_blocks`: workers whose KV blocks differ in size cannot share a name either."""
        self._make = make
        self._same_blocks = same_blocks
        self._entries: dict[str, ModelEntry] = {}  # by discovery key
        self._left_out: set[str] = set()  # keys that were complained about
        self._builder: asyncio.Task[None] | None = None
        self._chosen: ModelEntry | None = None  # one of those that are served or being made
        self.served: ServedModel | None = None

    @property
    def empty(self) -> bool:
        return not self._entries

    async def add(self, key: str, entry: ModelEntry) -> None:
        self._entries[key] = entry
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
        elected = self._elect(self._entries.values())
        if self._chosen is None or self._kind(elected) != self._kind(self._chosen):
            await self.close()
            self._chosen = elected
            self._builder = asyncio.create_task(self._build(), name="model-builder")
        elif self.served is not None:
            self.served.set_members(self._members().values())
        self._complain()

    def _kind(self, entry: ModelEntry) -> tuple[EndpointId, str, int | None]:
        """Equal for workers that can stand in for each other."""
        return entry.endpoint, entry.card.content_hash, entry.card.limits.kv_block_size if self._same_blocks else None

    def _elect(self, entries: Collection[ModelEntry]) -> ModelEntry:
        """One of the largest group's; of equally large ones, of that with the oldest worker."""
        sizes = Counter(map(self._kind, entries))
        return min(entries, key=lambda entry: (-sizes[self._kind(entry)], entry.announced_ms, entry.instance_id))

    def _members(self) -> dict[int, ModelEntry]:
        chosen = self._chosen
        return {
            e.instance_id: e
            for e in self._entries.values()
            if chosen is not None and self._kind(e) == self._kind(chosen)
        }

    def _complain(self) -> None:
        """Says once of each worker that is left out why it is."""
        assert self._chosen is not None
        left_out = {key: entry for key, entry in self._entries.items() if self._kind(entry) != self._kind(self._chosen)}
        for key in left_out.keys() - self._left_out:
            entry = left_out[key]
            logger.error(
                "instance %x gets no requests: it announces another model under the name %r than instance %x (%s)",
                entry.instance_id,
                entry.card.name,
                self._chosen.instance_id,
                _difference(entry, self._chosen),
            )
        self._left_out = set(left_out)

    async def _build(self) -> None:
        """Makes the ServedModel with the files of whichever worker gives them."""
        complaint = ""
        while True:
            for entry in tuple(self._members().values()):
                try:
                    served = await self._make(entry)
                except Exception as error:  # the boundary of a task: without a model nothing is served, so it goes on
                    text = f"model {entry.card.name!r} cannot be served yet: instance {entry.instance_id:x}: "
                    text += str(error) or ("no answer" if isinstance(error, TimeoutError) else repr(error))
                    if text != complaint:
                        complaint = text
                        logger.warning("%s", text, exc_info=not isinstance(error, (DynamoError, TimeoutError)))
                else:
                    served.set_members(self._members().values())
                    self.served = served
                    logger.info("serving the model %r", entry.card.name)
                    return
            await asyncio.sleep(_RETRY_S)


def _difference(entry: ModelEntry, other: ModelEntry) -> str:
    """For a person: what about `entry` is not as with `other`."""
    card, expected = entry.card, other.card
    found = []
    if entry.endpoint != other.endpoint:
        found.append(f"endpoint {entry.endpoint}, not {other.endpoint}")
    if card.context_length != expected.context_length:
        found.append(f"context length {card.context_length}, not {expected.context_length}")
    if card.limits.kv_block_size != expected.limits.kv_block_size:
        sizes = card.limits.kv_block_size or "unknown", expected.limits.kv_block_size or "unknown"
        found.append(f"KV block size {sizes[0]}, not {sizes[1]}")
    if files := sorted({artifact.name for artifact in set(card.artifacts) ^ set(expected.artifacts)}):
        found.append(f"other {', '.join(files)}")
    return "; ".join(found) or "another kind of model or engine"
