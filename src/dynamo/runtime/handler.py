"""The one calling shape: what a user's endpoint, each stage of the request path and an engine have in common."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar, runtime_checkable

from dynamo.runtime.context import Context

T = TypeVar("T")
Req = TypeVar("Req")
Resp = TypeVar("Resp")

# A function that answers a request with a stream. Closing the stream early must end the work behind it.
Handler = Callable[[Req, Context], AsyncIterator[Resp]]


@runtime_checkable
class Closable(Protocol):
    """What async generators have beside iteration."""

    async def aclose(self) -> None: ...


@asynccontextmanager
async def closing(stream: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """`async with closing(handler(request, context)) as stream:` closes the stream however the block ends."""
    try:
        yield stream
    finally:
        if isinstance(stream, Closable):
            await stream.aclose()
