"""Items that are pushed to their reader, rather than fetched."""

import asyncio
from typing import Any

from dynamo.errors import NotFoundError
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane.base import RequestPlane
from dynamo.runtime.request_plane.reply import WINDOW_BYTES
from dynamo.runtime.stage import Deliver
from dynamo.testing.request_plane.endings import Handler
from dynamo.testing.request_plane.flow import ITEM_BYTES, Producer, settled
from dynamo.testing.request_plane.service import call, collect, serving
from dynamo.testing.request_plane.streams import count
from dynamo.testing.waiting import within


class Reader:
    """Keeps what it is given; `then` decides what comes of item number `enough`."""

    def __init__(self, enough: int = 0, then: Deliver[Any] = lambda item: True) -> None:
        self.items: list[Any] = []
        self._enough = enough
        self._then = then

    def __call__(self, item: Any) -> bool:
        self.items.append(item)
        return self._then(item) if len(self.items) == self._enough else True


async def items_come_in_order(plane: RequestPlane) -> None:
    async with serving(plane, count) as service:
        reader = Reader()
        await within(call(await service.connect(), "count", 20_000).push_to(reader))
        assert reader.items == list(range(20_000))


async def error_of_the_call_is_raised(plane: RequestPlane) -> None:
    async with serving(plane, count) as service:
        try:
            await within(call(await service.connect(), "nobody").push_to(Reader()))
        except NotFoundError:
            return
        raise AssertionError("the call ended well")


async def reader_that_has_enough_ends_the_call(plane: RequestPlane) -> None:
    handler, reader = Handler(), Reader(1, lambda item: False)
    async with serving(plane, handler.endless) as service:
        await within(call(await service.connect(), "endless").push_to(reader))
        await within(handler.closed.wait())
    assert reader.items == [1]


async def error_of_a_reader_is_its_own(plane: RequestPlane) -> None:
    """It ends one call, and not the connection."""

    def fail(item: Any) -> bool:
        raise ZeroDivisionError

    reader = Reader(50, fail)
    async with serving(plane, count) as service:
        channel = await service.connect()
        try:
            await within(call(channel, "count", 100).push_to(reader))
        except ZeroDivisionError:
            assert await collect(call(channel, "count", 3)) == [0, 1, 2]
            assert reader.items == list(range(50))
            return
        raise AssertionError("the reader's error was lost")


async def cancelled_reader_ends_the_call(plane: RequestPlane) -> None:
    handler = Handler()
    async with serving(plane, handler.endless) as service:
        began = asyncio.Event()

        def begin(item: Any) -> bool:
            began.set()
            return True

        reader = Reader(1, begin)
        reading = asyncio.create_task(call(await service.connect(), "endless").push_to(reader))
        await within(began.wait())
        reading.cancel()
        await within(handler.closed.wait())


async def paused_reader_holds_the_call_back(plane: RequestPlane) -> None:
    """Within the bounds of its credit; it gets the rest, in order, when it resumes."""
    producer, context = Producer(), Context()

    def pause(item: Any) -> bool:
        context.pause()
        return True

    reader = Reader(10, pause)
    async with serving(plane, producer.produce) as service:
        channel = await service.connect()
        reading = asyncio.create_task(call(channel, "produce", 1000, context).push_to(reader))
        await settled(producer)
        assert len(reader.items) == 10
        assert producer.produced * ITEM_BYTES <= WINDOW_BYTES + 12 * ITEM_BYTES
        context.resume()
        await within(reading)
    assert len(reader.items) == 1000


async def reader_may_pause_past_the_end(plane: RequestPlane) -> None:
    context = Context()

    def pause(item: Any) -> bool:
        context.pause()
        return True

    reader = Reader(10, pause)
    async with serving(plane, count) as service:
        channel = await service.connect()
        reading = asyncio.create_task(call(channel, "count", 20, context).push_to(reader))
        for _ in range(3):  # calls that are answered after it
            assert await collect(call(channel, "count", 100)) == list(range(100))
        assert reader.items == list(range(10))
        assert not reading.done()
        context.resume()
        await within(reading)
    assert reader.items == list(range(20))


CASES = (
    items_come_in_order,
    error_of_the_call_is_raised,
    reader_that_has_enough_ends_the_call,
    error_of_a_reader_is_its_own,
    cancelled_reader_ends_the_call,
    paused_reader_holds_the_call_back,
    reader_may_pause_past_the_end,
)
