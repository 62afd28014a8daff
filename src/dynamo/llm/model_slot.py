"""Everything that is announced under one model name, and what of it is served."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from dynamo.errors import DynamoError
from dynamo.llm.register import ModelEntry
from dynamo.llm.served_model import ServedModel
from dynamo.llm.worker_group import WorkerGroup
from dynamo.protocols.model_card import WorkerType

logger = logging.getLogger(__name__)

_RETRY_S = 1.0


class ModelSlot:
    """The workers that answer, and those that only prefill: without one of the former there is nothing to serve."""

    def __init__(
        self, name: str, make: Callable[[ModelEntry], Awaitable[ServedModel]], *, same_blocks: bool = False
    ) -> None:
        """`same_blocks`: workers whose KV blocks differ in size cannot stand in for each other."""
        self._name = name
        self._make = make
        self._workers = WorkerGroup(same_blocks=same_blocks)
        self._prefill = WorkerGroup(same_blocks=same_blocks)
        self._prefill_news = _prefill_workers(0)  # as it was last logged
        self._builder: asyncio.Task[None] | None = None
        self.served: ServedModel | None = None

    @property
    def empty(self) -> bool:
        return not self._workers and not self._prefill

    @property
    def only_prefills(self) -> bool:
        """Whether there are workers, but none that would go on with what they have prefilled."""
        return bool(self._prefill) and not self._workers

    @property
    def idle(self) -> bool:
        """Whether nothing is lost with what is served."""
        return self.served is None or self.served.pipeline.idle

    async def until_idle(self) -> None:
        while self.served is not None and not self.served.pipeline.idle:
            await self.served.pipeline.until_idle()

    async def add(self, key: str, entry: ModelEntry) -> None:
        (self._prefill if entry.card.worker_type is WorkerType.Prefill else self._workers).add(key, entry)
        await self._update()

    async def remove(self, key: str) -> None:
        self._workers.remove(key)
        self._prefill.remove(key)
        await self._update()

    async def close(self) -> None:
        if self._builder is not None:
            self._builder.cancel()
            await asyncio.wait([self._builder])
            self._builder = None
        if self.served is not None:
            await self.served.close()
            self.served = None

    async def _update(self) -> None:
        """Brings what is served in line with what is announced."""
        others = self._workers.elect()
        decode = (entry for entry in self._workers.members() if entry.card.worker_type is WorkerType.Decode)
        self._prefill.elect(like=next(decode, self._workers.chosen))
        self._tell_of_prefill_workers()
        if others:
            await self.close()
            self._builder = asyncio.create_task(self._build(), name="model-builder")
        elif self.served is not None:
            await self._set_members(self.served)

    def _tell_of_prefill_workers(self) -> None:
        news = _prefill_workers(len(self._prefill.members()))
        if self.only_prefills:
            news += ", and none that decodes"
        if news != self._prefill_news:
            self._prefill_news = news
            logger.info("%s: %s", self._name, news)

    async def _set_members(self, served: ServedModel) -> None:
        served.set_members(self._workers.members())
        await served.set_prefill_members(self._prefill.members())

    async def _build(self) -> None:
        """Makes the ServedModel with the files of whichever worker gives them."""
        complaint = ""
        while True:
            for entry in self._workers.members():
                try:
                    served = await self._make(entry)
                except Exception as error:  # the boundary of a task: without a model nothing is served, so it goes on
                    text = f"model {entry.card.name!r} cannot be served yet: instance {entry.instance_id:x}: "
                    text += str(error) or ("no answer" if isinstance(error, TimeoutError) else repr(error))
                    if text != complaint:
                        complaint = text
                        logger.warning("%s", text, exc_info=not isinstance(error, (DynamoError, TimeoutError)))
                else:
                    self.served = served
                    await self._set_members(served)
                    logger.info("serving the model %r", entry.card.name)
                    return
            await asyncio.sleep(_RETRY_S)


def _prefill_workers(count: int) -> str:
    return f"{count or 'no'} prefill worker{'s' if count > 1 else ''}"
