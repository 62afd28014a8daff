"""One side serves, the other calls: the stage on which the cases play."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from dynamo.errors import NotFoundError
from dynamo.runtime.client import ReplyStream
from dynamo.runtime.codec import encode_payload, payload_decoder
from dynamo.runtime.component import UserHandler, payload_handler
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane.base import Channel, Listener, RequestPlane
from dynamo.runtime.request_plane.call import PayloadHandler
from dynamo.testing.waiting import within

_decode = payload_decoder()


class Service:
    """A listener with some handlers, each at an endpoint of its function's name, and connections to it."""

    def __init__(self, plane: RequestPlane, listener: Listener) -> None:
        self._plane = plane
        self._channels = AsyncExitStack()
        self.listener = listener

    async def connect(self) -> Channel:
        """A new connection, closed at the end."""
        channel = await within(self._plane.connect(self.listener.address))
        self._channels.push_async_callback(channel.close)
        return channel

    async def close(self) -> None:
        await within(self._channels.aclose())
        await within(self.listener.close())


@asynccontextmanager
async def serving(plane: RequestPlane, *handlers: UserHandler) -> AsyncIterator[Service]:
    """Serves `handlers` within the block."""
    by_name = {handler.__name__: payload_handler(handler) for handler in handlers}

    def dispatch(endpoint: str) -> PayloadHandler:
        if endpoint not in by_name:
            raise NotFoundError(f"no endpoint {endpoint}")
        return by_name[endpoint]

    service = Service(plane, await plane.listen(dispatch))
    try:
        yield service
    finally:
        await service.close()


def call(channel: Channel, endpoint: str, request: Any = None, context: Context | None = None) -> ReplyStream[Any]:
    """Starts a call; the result iterates over the values of the reply."""
    return ReplyStream(channel.call(endpoint, encode_payload(request), context or Context()), _decode, 0)


async def collect(stream: ReplyStream[Any]) -> list[Any]:
    """All values of a reply."""

    async def read() -> list[Any]:
        return [item async for item in stream]

    return await within(read())


async def failure(stream: ReplyStream[Any]) -> BaseException:
    """The exception that ends a reply; AssertionError when it ends well."""
    try:
        items = await collect(stream)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the result
        return error
    raise AssertionError(f"the reply ended well, with {len(items)} items")
