"""A slow reader holds up itself and nobody else."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from dynamo.runtime.request_plane.base import RequestPlane
from dynamo.runtime.request_plane.reply import WINDOW_BYTES
from dynamo.testing.request_plane.service import call, collect, serving
from dynamo.testing.waiting import within

ITEM_BYTES = 16 << 10


class Producer:
    """A handler that counts what it has given away."""

    def __init__(self, item: bytes = bytes(ITEM_BYTES)) -> None:
        self._item = item
        self.produced = 0
        self.closed = asyncio.Event()

    async def produce(self, request: int) -> AsyncIterator[bytes]:
        try:
            for _ in range(request):
                await asyncio.sleep(0)
                self.produced += 1
                yield self._item
        finally:
            self.closed.set()


async def ping(request: Any) -> AsyncIterator[Any]:
    yield request


async def settled(producer: Producer) -> None:
    """Waits until the producer has come to a halt."""
    last = -1
    while producer.produced != last:
        last = producer.produced
        for _ in range(100):
            await asyncio.sleep(0)


async def unread_stream_is_held_back(plane: RequestPlane) -> None:
    producer = Producer()
    async with serving(plane, producer.produce, ping) as service:
        channel = await service.connect()
        unread = call(channel, "produce", 1000)
        assert len(await within(anext(unread))) == ITEM_BYTES
        for number in range(20):  # the connection stays free for others
            assert await collect(call(channel, "ping", number)) == [number]
        await settled(producer)
        assert WINDOW_BYTES <= producer.produced * ITEM_BYTES <= WINDOW_BYTES + 2 * ITEM_BYTES
        await unread.aclose()
        await within(producer.closed.wait())


async def tiny_items_are_held_back_too(plane: RequestPlane) -> None:
    """What a reader has to keep is more than the payload: a window of one-byte items must not be a flood."""
    producer = Producer(b"")
    async with serving(plane, producer.produce) as service:
        channel = await service.connect()
        unread = call(channel, "produce", 100_000)
        await within(anext(unread))
        await settled(producer)
        assert producer.produced < 10_000
        await unread.aclose()
        await within(producer.closed.wait())


async def held_back_stream_goes_on_when_it_is_read(plane: RequestPlane) -> None:
    producer = Producer()
    async with serving(plane, producer.produce) as service:
        stream = call(await service.connect(), "produce", 100)
        await within(anext(stream))
        await settled(producer)
        assert producer.produced < 100
        assert len(await collect(stream)) == 99


async def slow_reader_does_not_slow_its_neighbours(plane: RequestPlane) -> None:
    slow, quick = Producer(), Producer()

    async def produce_more(request: int) -> AsyncIterator[bytes]:
        async for item in quick.produce(request):
            yield item

    async with serving(plane, slow.produce, produce_more) as service:
        channel = await service.connect()
        unread = [call(channel, "produce", 1000) for _ in range(10)]
        assert len(await collect(call(channel, "produce_more", 500))) == 500
        for stream in unread:
            await stream.aclose()


async def item_larger_than_the_window(plane: RequestPlane) -> None:
    producer = Producer(bytes(4 * WINDOW_BYTES))
    async with serving(plane, producer.produce) as service:
        assert len(await collect(call(await service.connect(), "produce", 5))) == 5


CASES = (
    unread_stream_is_held_back,
    tiny_items_are_held_back_too,
    held_back_stream_goes_on_when_it_is_read,
    slow_reader_does_not_slow_its_neighbours,
    item_larger_than_the_window,
)
