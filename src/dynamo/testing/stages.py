"""Reading a stage of the request path: to its end, or for a while."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from dynamo.runtime.context import Context
from dynamo.runtime.stage import Stage
from dynamo.testing.waiting import within

Req = TypeVar("Req")
Resp = TypeVar("Resp")


class Reading(Generic[Resp]):
    """A stage at work in a task of its own, and what it has delivered."""

    def __init__(self, stage: Stage[Req, Resp], request: Req, context: Context, enough: int | None) -> None:
        self.items: list[Resp] = []
        self._enough = enough
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(self._read(stage, request, context))
        self.task.add_done_callback(lambda _: self._changed.set())

    @property
    def failure(self) -> BaseException | None:
        """What the stage has raised; None while it works, and after a cancellation."""
        return None if not self.task.done() or self.task.cancelled() else self.task.exception()

    async def until(self, count: int) -> list[Resp]:
        """The items, once there are so many; raises what the stage raises, AssertionError when it ends with fewer."""
        await within(self._until(count))
        return self.items

    async def end(self) -> list[Resp]:
        """All items, once the stage has ended; raises what it raises."""
        await within(asyncio.wait([self.task]))
        await self.task
        return self.items

    async def _until(self, count: int) -> None:
        while len(self.items) < count:
            if self.task.done():
                await self.task
                raise AssertionError(f"the stage has ended after {len(self.items)} of {count} items")
            self._changed.clear()
            await self._changed.wait()

    async def _read(self, stage: Stage[Req, Resp], request: Req, context: Context) -> None:
        await stage(request, context, self._deliver)

    def _deliver(self, item: Resp) -> bool:
        assert self._enough is None or len(self.items) < self._enough, f"{item!r} was not wanted any more"
        self.items.append(item)
        self._changed.set()
        return self._enough is None or len(self.items) < self._enough


@asynccontextmanager
async def reading(
    stage: Stage[Req, Resp], request: Req, context: Context | None = None, *, enough: int | None = None
) -> AsyncIterator[Reading[Resp]]:
    """Starts the stage, and cancels it when the block ends, as a client that leaves does.

    After `enough` items (at least 1) the reader wants no more; another one is an AssertionError in the stage.
    """
    reader = Reading(stage, request, context or Context(), enough)
    try:
        yield reader
    finally:
        reader.task.cancel()
        await within(asyncio.wait([reader.task]))


async def outputs_of(
    stage: Stage[Req, Resp], request: Req, context: Context | None = None, *, enough: int | None = None
) -> list[Resp]:
    """All that the stage answers; raises what it raises. `enough`: as in reading()."""
    async with reading(stage, request, context, enough=enough) as reader:
        return await reader.end()
