"""The one calling shape: what a user's endpoint, each stage of the request path and an engine have in common."""

from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Generic, TypeVar

from dynamo.runtime.context import Context

T = TypeVar("T")
Req = TypeVar("Req")
Resp = TypeVar("Resp")

# A function that answers a request with a stream. Closing the stream early must end the work behind it.
Handler = Callable[[Req, Context], AsyncIterator[Resp]]


class closing(Generic[T]):  # noqa: N801 - used like contextlib.aclosing
    """`async with closing(handler(request, context)) as stream:` closes the stream however the block ends.

    Like contextlib.aclosing, but content with iterators that have no aclose().
    """

    __slots__ = ("_stream",)

    def __init__(self, stream: AsyncIterator[T]) -> None:
        self._stream = stream

    async def __aenter__(self) -> AsyncIterator[T]:
        return self._stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            await close()
