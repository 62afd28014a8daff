"""A call that its caller ends early: the other end hears of it, and nothing is left behind."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from dynamo.errors import DeadlineExceededError, RequestCancelledError
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane.base import RequestPlane
from dynamo.testing.request_plane.service import call, collect, failure, serving
from dynamo.testing.waiting import within

SHORT_S = 0.05


class Handler:
    """Says what becomes of it."""

    def __init__(self) -> None:
        self.calls = 0
        self.context = Context()
        self.closed = asyncio.Event()

    async def endless(self, request: Any, context: Context) -> AsyncIterator[int]:
        """Yields one item and then waits for ever."""
        self.calls += 1
        self.context = context
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def orderly(self, request: Any, context: Context) -> AsyncIterator[str]:
        """Ends when it is asked to."""
        try:
            yield "first"
            await context.async_killed_or_stopped()
            yield "last"
        finally:
            self.context = context
            self.closed.set()


async def closing_reaches_the_handler(plane: RequestPlane) -> None:
    handler = Handler()
    async with serving(plane, handler.endless) as service:
        stream = call(await service.connect(), "endless")
        assert await within(anext(stream)) == 1
        await stream.aclose()
        await stream.aclose()
        await within(handler.closed.wait())
        assert handler.context.is_killed()
        assert isinstance(await failure(stream), RequestCancelledError)


async def dropping_the_reply_reaches_the_handler(plane: RequestPlane) -> None:
    """As `break` does in a loop over a plain async generator."""
    handler = Handler()
    async with serving(plane, handler.endless) as service:
        channel = await service.connect()
        async for _ in call(channel, "endless"):
            break
        await within(handler.closed.wait())


async def cancelled_reader_can_close(plane: RequestPlane) -> None:
    handler = Handler()
    async with serving(plane, handler.endless) as service:
        stream = call(await service.connect(), "endless")
        assert await within(anext(stream)) == 1
        reader = asyncio.create_task(collect(stream))
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.wait([reader])
        await stream.aclose()
        await within(handler.closed.wait())


async def stopping_asks_for_an_orderly_end(plane: RequestPlane) -> None:
    handler = Handler()
    async with serving(plane, handler.orderly) as service:
        context = Context()
        stream = call(await service.connect(), "orderly", None, context)
        assert await within(anext(stream)) == "first"
        context.stop_generating()
        assert await collect(stream) == ["last"]
        assert handler.context.is_stopped()
        assert not handler.context.is_killed()


async def killing_cancels_the_handler(plane: RequestPlane) -> None:
    handler = Handler()
    async with serving(plane, handler.endless) as service:
        context = Context()
        stream = call(await service.connect(), "endless", None, context)
        assert await within(anext(stream)) == 1
        context.kill()
        assert isinstance(await failure(stream), RequestCancelledError)
        await within(handler.closed.wait())
        assert handler.context.is_killed()


async def stopped_before_the_call(plane: RequestPlane) -> None:
    handler = Handler()
    async with serving(plane, handler.orderly) as service:
        context = Context()
        context.stop_generating()
        assert await collect(call(await service.connect(), "orderly", None, context)) == ["first", "last"]


async def killed_before_the_call(plane: RequestPlane) -> None:
    handler = Handler()
    async with serving(plane, handler.endless, handler.orderly) as service:
        channel = await service.connect()
        context = Context()
        context.kill()
        assert isinstance(await failure(call(channel, "endless", None, context)), RequestCancelledError)
        following = call(channel, "orderly")  # by its answer, the first call has been dealt with
        assert await within(anext(following)) == "first"
        assert handler.calls == 0 or handler.closed.is_set()
        await following.aclose()


async def killed_after_the_end(plane: RequestPlane) -> None:
    async def echo(request: Any) -> AsyncIterator[Any]:
        yield request

    async with serving(plane, echo) as service:
        channel = await service.connect()
        context = Context()
        stream = call(channel, "echo", 1, context)
        assert await collect(stream) == [1]
        context.stop_generating()
        context.kill()
        await stream.aclose()
        assert await collect(call(channel, "echo", 2)) == [2]


async def deadline_holds_at_both_ends(plane: RequestPlane) -> None:
    handler = Handler()
    async with serving(plane, handler.endless) as service:
        channel = await service.connect()
        context = Context(deadline_s=time.monotonic() + SHORT_S)
        stream = call(channel, "endless", None, context)
        assert await within(anext(stream)) == 1
        remaining_s = handler.context.remaining_s()
        assert remaining_s is not None
        assert 0 < remaining_s <= SHORT_S
        assert isinstance(await failure(stream), DeadlineExceededError)
        await within(handler.closed.wait())


async def deadline_that_has_passed(plane: RequestPlane) -> None:
    handler = Handler()
    async with serving(plane, handler.endless) as service:
        channel = await service.connect()
        context = Context(deadline_s=time.monotonic() - 1)
        assert isinstance(await failure(call(channel, "endless", None, context)), DeadlineExceededError)


async def deadline_in_the_far_future(plane: RequestPlane) -> None:
    handler = Handler()
    async with serving(plane, handler.orderly) as service:
        context = Context(deadline_s=float("inf"))
        stream = call(await service.connect(), "orderly", None, context)
        assert await within(anext(stream)) == "first"
        context.stop_generating()
        assert await collect(stream) == ["last"]


CASES = (
    closing_reaches_the_handler,
    dropping_the_reply_reaches_the_handler,
    cancelled_reader_can_close,
    stopping_asks_for_an_orderly_end,
    killing_cancels_the_handler,
    stopped_before_the_call,
    killed_before_the_call,
    killed_after_the_end,
    deadline_holds_at_both_ends,
    deadline_that_has_passed,
    deadline_in_the_far_future,
)
