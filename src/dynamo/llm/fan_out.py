"""Several requests to one handler, answered as one stream."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from dynamo.runtime.context import Context
from dynamo.runtime.handler import Handler, closing

Req = TypeVar("Req")
Resp = TypeVar("Resp")


@dataclass(frozen=True, slots=True)
class _End:
    """A stream ended, by itself or by an error."""

    error: Exception | None = None


async def fan_out(handler: Handler[Req, Resp], requests: Sequence[Req], context: Context) -> AsyncIterator[Resp]:
    """Yields what `handler` answers to each request, as it comes.

    Each request has a context of its own that is stopped and killed with `context`. The first error ends all; so does
    closing. Per stream one answer waits at most.
    """
    queue: asyncio.Queue[Resp | _End] = asyncio.Queue(maxsize=len(requests))
    tasks = [
        asyncio.create_task(_pump(handler, request, context, i, queue), name=f"{context.id()}-{i}")
        for i, request in enumerate(requests)
    ]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if not isinstance(item, _End):
                yield item
            elif item.error is not None:
                raise item.error
            else:
                running -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    handler: Handler[Req, Resp], request: Req, context: Context, i: int, queue: "asyncio.Queue[Resp | _End]"
) -> None:
    end = _End()
    try:
        with _child(context, i) as child:
            async with closing(handler(request, child)) as items:
                async for item in items:
                    await queue.put(item)
    except Exception as error:  # noqa: BLE001 - whatever it is, the reader of the queue raises it
        end = _End(error)
    await queue.put(end)


@contextmanager
def _child(context: Context, i: int) -> Iterator[Context]:
    child = context.detached(f"{context.id()}-{i}")

    def follow(parent: Context) -> None:
        if parent.is_killed():
            child.kill()
        else:
            child.stop_generating()

    forget = context.on_stop(follow)
    try:
        yield child
    finally:
        forget()
