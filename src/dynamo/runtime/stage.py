"""The calling shape of the request path: a stage pushes the items of its answer to whoever asked for it.

A token goes from the socket it came in on to the one it leaves by in one call, without waking a task on the way. A
million short wake-ups, each with cold caches, are what a frontend would spend its time on otherwise (docs/adr/0003).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from dynamo.runtime.context import Context
from dynamo.runtime.handler import Handler, closing

T = TypeVar("T")
Req = TypeVar("Req")
Resp = TypeVar("Resp")

# Takes one item, at once and in the event loop; False means that no more is wanted, which is a good end.
Deliver = Callable[[T], bool]
# Answers a request by calling the Deliver with each item, in order. It returns after the last, raises what else ended
# the answer, what the Deliver raised included, and ends the work behind it when it is cancelled. While the context is
# paused it delivers nothing.
Stage = Callable[[Req, Context, Deliver[Resp]], Awaitable[None]]

_WAITING_MAX = 64  # items that wait for a reader before the stage is paused


def pushed(handler: Handler[Req, Resp]) -> Stage[Req, Resp]:
    """A handler as a stage."""

    async def stage(request: Req, context: Context, deliver: Deliver[Resp]) -> None:
        async with closing(handler(request, context)) as items:
            async for item in items:
                if context.is_paused():
                    await context.resumed()
                if not deliver(item):
                    return

    return stage


def pulled(stage: Stage[Req, Resp]) -> Handler[Req, Resp]:
    """A stage as a handler; its context is paused while the reader is behind."""

    async def handler(request: Req, context: Context) -> AsyncIterator[Resp]:
        items: deque[Resp] = deque()
        changed = asyncio.Event()

        def deliver(item: Resp) -> bool:
            items.append(item)
            changed.set()
            if len(items) >= _WAITING_MAX:
                context.pause()
            return True

        async def run() -> None:
            await stage(request, context, deliver)

        task = asyncio.create_task(run(), name=f"stage-{context.id()}")
        task.add_done_callback(lambda _: changed.set())
        try:
            while True:
                while items:
                    yield items.popleft()
                context.resume()  # which may deliver at once
                if items:
                    continue
                if task.done():
                    await task
                    return
                changed.clear()
                await changed.wait()
        finally:
            task.cancel()
            await asyncio.wait([task])

    return handler
