"""What goes wrong in one call is told to its caller, by type, and to nobody else."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from dynamo.errors import (
    ContextLengthExceededError,
    DynamoError,
    HandlerError,
    InternalError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    RequestTooLargeError,
)
from dynamo.runtime.codec import DEFAULT_MAX_FRAME_BYTES
from dynamo.runtime.component import UserHandler
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane.base import Channel, RequestPlane
from dynamo.testing.request_plane.service import call, collect, failure, serving
from dynamo.testing.waiting import within


async def patient(request: Any) -> AsyncIterator[Any]:
    """A neighbour: answers over many turns of the event loop, to see that it comes to no harm."""
    for number in range(100):
        await asyncio.sleep(0)
        yield number


@asynccontextmanager
async def with_unharmed_neighbour(plane: RequestPlane, handler: UserHandler) -> AsyncIterator[Channel]:
    """A connection for a call to `handler` beside one that must go well."""
    async with serving(plane, handler, patient) as service:
        channel = await service.connect()
        neighbour = call(channel, "patient")
        assert await within(anext(neighbour)) == 0
        yield channel
        assert await collect(neighbour) == list(range(1, 100))


async def handlers_own_exception(plane: RequestPlane) -> None:
    async def fails(request: Any) -> AsyncIterator[Any]:
        yield 1
        raise KeyError("a key")

    async with with_unharmed_neighbour(plane, fails) as channel:
        stream = call(channel, "fails")
        assert await within(anext(stream)) == 1
        error = await failure(stream)
        assert isinstance(error, HandlerError)
        assert error.error_type == "KeyError"
        assert error.message == "'a key'"


async def errors_of_the_framework_arrive_as_themselves(plane: RequestPlane) -> None:
    errors = (
        InvalidRequestError("no such field", param="temperature"),
        ContextLengthExceededError("too long", param="messages"),
        ModelNotFoundError("which?"),
        OverloadedError("later"),
        InternalError("oh"),
    )

    async def fails(request: int) -> AsyncIterator[Any]:
        raise errors[request]
        yield

    async with with_unharmed_neighbour(plane, fails) as channel:
        for position, raised in enumerate(errors):
            error = await failure(call(channel, "fails", position))
            assert isinstance(error, DynamoError)
            assert type(error) is type(raised)
            assert (error.message, error.param) == (raised.message, raised.param)


async def item_that_cannot_be_encoded(plane: RequestPlane) -> None:
    closed = asyncio.Event()

    async def yields_object(request: Any) -> AsyncIterator[Any]:
        try:
            yield object()
        finally:
            closed.set()

    async with with_unharmed_neighbour(plane, yields_object) as channel:
        error = await failure(call(channel, "yields_object"))
        assert isinstance(error, HandlerError)
        assert error.error_type == "TypeError"
        assert "object" in error.message
        await within(closed.wait())


async def item_over_the_frame_limit(plane: RequestPlane) -> None:
    async def yields_too_much(request: Any) -> AsyncIterator[Any]:
        yield bytes(DEFAULT_MAX_FRAME_BYTES)

    async with with_unharmed_neighbour(plane, yields_too_much) as channel:
        error = await failure(call(channel, "yields_too_much"))
        assert isinstance(error, HandlerError)  # the request is not what is too large
        assert "does not fit" in error.message


async def largest_item_beside_small_ones(plane: RequestPlane) -> None:
    """Messages of one turn share a frame, which must not grow over the limit for that."""
    size_bytes = DEFAULT_MAX_FRAME_BYTES - 1024
    start = asyncio.Event()

    async def largest(request: Any) -> AsyncIterator[bytes]:
        await start.wait()
        yield bytes(size_bytes)

    async def small(request: Any) -> AsyncIterator[bytes]:
        await start.wait()
        yield bytes(100_000)

    async with serving(plane, small, largest) as service:
        channel = await service.connect()
        streams = [call(channel, "small"), call(channel, "largest")]
        items = [asyncio.create_task(collect(stream)) for stream in streams]
        await asyncio.sleep(0)
        start.set()
        assert [len(item) for (item,) in await asyncio.gather(*items)] == [100_000, size_bytes]


async def message_that_cannot_be_encoded(plane: RequestPlane) -> None:
    async def fails(request: Any) -> AsyncIterator[Any]:
        raise OSError("no file named \udcff")
        yield

    async with with_unharmed_neighbour(plane, fails) as channel:
        error = await failure(call(channel, "fails"))
        assert isinstance(error, HandlerError)
        assert error.message.startswith("no file named ")


async def endless_message(plane: RequestPlane) -> None:
    async def fails(request: Any) -> AsyncIterator[Any]:
        raise ValueError("x" * (1 << 20))
        yield

    async with with_unharmed_neighbour(plane, fails) as channel:
        error = await failure(call(channel, "fails"))
        assert isinstance(error, HandlerError)
        assert error.message.startswith("xxx")
        assert len(error.message) < 1 << 16


async def context_that_cannot_travel(plane: RequestPlane) -> None:
    """The caller's mistake stays with the caller: its neighbours on the connection notice nothing."""

    async def echo(request: Any) -> AsyncIterator[Any]:
        yield request

    def contexts() -> Iterator[Context]:
        yield Context(traceparent="\udcff")
        yield Context(metadata={"k": "\udcff"})
        yield Context(metadata={"k": 1})  # type: ignore[dict-item]
        yield Context(metadata={"k": "x" * DEFAULT_MAX_FRAME_BYTES})

    async with with_unharmed_neighbour(plane, echo) as channel:
        for context in contexts():
            try:
                call(channel, "echo", 1, context)
            except (ValueError, RequestTooLargeError):
                continue
            raise AssertionError(f"took {context.metadata or context.traceparent!r:.20}")
        assert await collect(call(channel, "echo", 1)) == [1]


async def request_of_the_wrong_shape(plane: RequestPlane) -> None:
    async def echo(request: Any) -> AsyncIterator[Any]:
        yield request

    async with with_unharmed_neighbour(plane, echo) as channel:
        for payload in (b"\xa2\xff\xff", b"\xc7\x03\x01abc", b"\xc7\x03\x09abc"):
            reply = channel.call("echo", payload, Context())
            try:
                await within(anext(reply))
            except InvalidRequestError:
                continue
            raise AssertionError(f"{payload[:10]!r} was taken")


CASES = (
    handlers_own_exception,
    errors_of_the_framework_arrive_as_themselves,
    item_that_cannot_be_encoded,
    item_over_the_frame_limit,
    largest_item_beside_small_ones,
    message_that_cannot_be_encoded,
    endless_message,
    context_that_cannot_travel,
    request_of_the_wrong_shape,
)
