"""Several requests to one stage, answered as one stream."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from dynamo.runtime.context import Context
from dynamo.runtime.stage import Deliver, Stage

Req = TypeVar("Req")
Resp = TypeVar("Resp")


async def fan_out(stage: Stage[Req, Resp], requests: Sequence[Req], context: Context, deliver: Deliver[Resp]) -> None:
    """Delivers what `stage` answers to each request, as it comes.

    Each request has a context of its own that follows `context`. The first error ends all; so does a reader that
    has enough.
    """
    wanted = True

    def pass_on(item: Resp) -> bool:
        nonlocal wanted
        wanted = wanted and deliver(item)
        return wanted

    async def answer(i: int, request: Req) -> None:
        with _child(context, i) as child:
            await stage(request, child, pass_on)
        if not wanted:
            raise _EnoughError

    try:
        async with asyncio.TaskGroup() as group:
            for i, request in enumerate(requests):
                group.create_task(answer(i, request), name=f"{context.id()}-{i}")
    except ExceptionGroup as failures:
        first = failures.exceptions[0]
        if not isinstance(first, _EnoughError):
            raise first from None


class _EnoughError(Exception):
    """No more is wanted: ends the other answers too."""


@contextmanager
def _child(context: Context, i: int) -> Iterator[Context]:
    child = context.detached(f"{context.id()}-{i}")

    def follow(parent: Context) -> None:
        if parent.is_killed():
            child.kill()
        else:
            child.stop_generating()

    def follow_flow(parent: Context) -> None:
        if parent.is_paused():
            child.pause()
        else:
            child.resume()

    removals = (context.on_stop(follow), context.on_flow(follow_flow))
    try:
        yield child
    finally:
        for remove in removals:
            remove()
