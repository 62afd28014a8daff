"""Replies arrive whole, in order, and each at its own caller."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from dynamo.errors import NotFoundError
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane.base import RequestPlane
from dynamo.testing.request_plane.service import call, collect, failure, serving
from dynamo.tokens import token_array

VALUES: tuple[Any, ...] = (
    None,
    True,
    -(2**63),
    2**64 - 1,
    1.5,
    "",
    "Ünïcode 模型 🚀",
    b"\x00\xff",
    [],
    {"nested": [{"deep": [1, None, {"er": b""}]}]},
    "x" * 100_000,
)
LARGE_BYTES = 24 << 20


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


async def count(request: int) -> AsyncIterator[int]:
    for number in range(request):
        yield number


async def slow_count(request: int) -> AsyncIterator[int]:
    for number in range(request):
        await asyncio.sleep(0)
        yield number


async def one_item(plane: RequestPlane) -> None:
    async with serving(plane, echo) as service:
        channel = await service.connect()
        assert await collect(call(channel, "echo", "hello")) == ["hello"]


async def many_items_in_order(plane: RequestPlane) -> None:
    async with serving(plane, count) as service:
        channel = await service.connect()
        assert await collect(call(channel, "count", 20_000)) == list(range(20_000))


async def no_item_at_all(plane: RequestPlane) -> None:
    async with serving(plane, count) as service:
        channel = await service.connect()
        assert await collect(call(channel, "count", 0)) == []


async def streams_do_not_mix(plane: RequestPlane) -> None:
    async with serving(plane, count, slow_count) as service:
        channels = [await service.connect(), await service.connect()]
        lengths = list(range(100))
        calls = [call(channels[n % 2], ("count", "slow_count")[n % 3 == 0], n) for n in lengths]
        assert await asyncio.gather(*map(collect, calls)) == [list(range(n)) for n in lengths]


async def values_survive_the_journey(plane: RequestPlane) -> None:
    async with serving(plane, echo) as service:
        channel = await service.connect()
        for value in VALUES:
            assert await collect(call(channel, "echo", value)) == [value]
        assert await collect(call(channel, "echo", {"token_ids": token_array([0, 2**32 - 1])})) == [
            {"token_ids": [0, 2**32 - 1]}
        ]


async def large_request_and_large_item(plane: RequestPlane) -> None:
    async with serving(plane, echo) as service:
        channel = await service.connect()
        (received,) = await collect(call(channel, "echo", bytes(LARGE_BYTES)))
        assert len(received) == LARGE_BYTES


async def context_travels(plane: RequestPlane) -> None:
    async def describe(request: None, context: Context) -> AsyncIterator[Any]:
        yield [context.id(), context.metadata, context.traceparent, context.deadline_s]

    async with serving(plane, describe) as service:
        channel = await service.connect()
        context = Context("my-id", {"user": "Zoë"}, traceparent="00-aa-bb-01")
        assert await collect(call(channel, "describe", None, context)) == [
            ["my-id", {"user": "Zoë"}, "00-aa-bb-01", None]
        ]


async def unknown_endpoint(plane: RequestPlane) -> None:
    async with serving(plane, echo) as service:
        channel = await service.connect()
        assert isinstance(await failure(call(channel, "nobody")), NotFoundError)
        assert await collect(call(channel, "echo", 1)) == [1]


CASES = (
    one_item,
    many_items_in_order,
    no_item_at_all,
    streams_do_not_mix,
    values_survive_the_journey,
    large_request_and_large_item,
    context_travels,
    unknown_endpoint,
)
