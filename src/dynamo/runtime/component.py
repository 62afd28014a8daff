"""Namespace, component, endpoint: how a deployment's parts are named, served and called."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from dynamo.errors import InvalidRequestError
from dynamo.runtime.client import Client
from dynamo.runtime.codec import encode_payload, payload_decoder
from dynamo.runtime.context import Context
from dynamo.runtime.handler import Handler, closing
from dynamo.runtime.instance import EndpointId
from dynamo.runtime.request_plane.call import PayloadHandler

if TYPE_CHECKING:
    from dynamo.runtime.distributed import DistributedRuntime

# What users write: an async generator function of the request, or of the request and its context.
UserHandler = Callable[..., AsyncIterator[Any]]


class Namespace:
    """A deployment."""

    def __init__(self, runtime: "DistributedRuntime", name: str) -> None:
        self._runtime = runtime
        self.name = name

    def component(self, name: str) -> "Component":
        return Component(self._runtime, self.name, name)


class Component:
    """A part of a deployment: what a kind of worker does."""

    def __init__(self, runtime: "DistributedRuntime", namespace: str, name: str) -> None:
        self._runtime = runtime
        self.namespace = namespace
        self.name = name

    def endpoint(self, name: str) -> "Endpoint":
        return Endpoint(self._runtime, EndpointId(self.namespace, self.name, name))


class Endpoint:
    """Something a component can be asked for."""

    def __init__(self, runtime: "DistributedRuntime", endpoint_id: EndpointId) -> None:
        self.runtime = runtime
        self.id = endpoint_id

    def __str__(self) -> str:
        return str(self.id)

    def connection_id(self) -> int:
        """The instance id under which this process serves the endpoint."""
        return self.runtime.instance_id

    async def client(self, *, response_type: Any = Any) -> Client:
        """A client that follows the endpoint's instances; replies are decoded as `response_type`."""
        return self.runtime.client(self.id, response_type)

    async def serve_endpoint(
        self,
        handler: UserHandler,
        graceful_shutdown: bool = True,
        metrics_labels: list[tuple[str, str]] | None = None,
        health_check_payload: dict[str, Any] | None = None,
        *,
        request_type: Any = Any,
    ) -> None:
        """Serves the endpoint until the runtime shuts down.

        `handler(request)` or `handler(request, context)` is an async generator function; the request is decoded as
        `request_type`. With `graceful_shutdown` requests under way may finish first. `metrics_labels` and
        `health_check_payload` are accepted for upstream's programs and have no effect yet.
        """
        await self.start(handler, request_type=request_type)
        await self.runtime.wait_for_shutdown()
        await self.runtime.close(graceful=graceful_shutdown)

    async def start(self, handler: UserHandler, *, request_type: Any = Any) -> None:
        """Serves the endpoint and returns at once; it ends with the runtime."""
        await self.runtime.serve(self.id, payload_handler(handler, request_type))


def payload_handler(handler: UserHandler, request_type: Any = Any) -> PayloadHandler:
    """Wraps a handler of values into one of encoded payloads; TypeError when it is not an async generator function."""
    decode = payload_decoder(request_type)
    call = with_context(handler)

    async def serve(payload: msgspec.Raw, context: Context) -> AsyncGenerator[bytes, None]:
        try:
            request = decode(payload)
        except (msgspec.DecodeError, ValueError) as error:
            raise InvalidRequestError(f"the request has the wrong shape: {error}") from error
        async with closing(call(request, context)) as replies:
            async for reply in replies:
                yield encode_payload(reply)

    return serve


def with_context(handler: UserHandler) -> Handler[Any, Any]:
    """`handler` as a function of request and context, whichever of the two forms it has."""
    if asyncio.iscoroutinefunction(handler):
        raise TypeError(f"{handler!r} must yield its items: an async function with `yield`, not with `return`")
    parameters = inspect.signature(handler).parameters
    if len(parameters) >= 2:
        return handler
    return lambda request, _context: handler(request)
