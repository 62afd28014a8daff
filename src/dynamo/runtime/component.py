"""Namespace, component, endpoint: how a deployment's parts are named, served and called."""

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec

from dynamo.errors import (
    DynamoError,
    HandlerError,
    InvalidRequestError,
    RequestCancelledError,
    RequestTooLargeError,
)
from dynamo.runtime.client import Client
from dynamo.runtime.codec import PAYLOAD_ERRORS, encode_payload, payload_decoder
from dynamo.runtime.context import Context
from dynamo.runtime.handler import Handler, closing
from dynamo.runtime.instance import EndpointId
from dynamo.runtime.request_plane.call import PayloadHandler
from dynamo.runtime.watchdog import Vitals
from dynamo.telemetry.metrics import EndpointMetrics

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
        """ValueError when one of the three names is not made of letters, digits, "-" and "_"."""
        return Endpoint(self._runtime, EndpointId.parse(f"{self.namespace}.{self.name}.{name}"))


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
        `request_type`. With `graceful_shutdown` requests under way may finish first. While the handler does not answer
        `health_check_payload`, a request that it is given every so often, the endpoint gets no others. `metrics_labels`
        are accepted for upstream's programs and have no effect yet.
        """
        await self.start(handler, request_type=request_type, health_check_payload=health_check_payload)
        await self.runtime.wait_for_shutdown()
        await self.runtime.close(graceful=graceful_shutdown)

    async def start(
        self,
        handler: UserHandler,
        *,
        request_type: Any = Any,
        health_check_payload: dict[str, Any] | None = None,
    ) -> None:
        """Serves the endpoint and returns at once; it ends with the runtime."""
        metrics = self.runtime.shared.metrics.endpoint(self.id.namespace, self.id.component, self.id.name)
        canary: HandlerCanary | None = None
        if health_check_payload is not None:
            canary = HandlerCanary(payload_handler(handler, request_type), encode_payload(health_check_payload))
        await self.runtime.serve(self.id, payload_handler(handler, request_type, metrics))
        if canary is not None:
            self.runtime.watch(self.id, canary, "the handler does not answer")


class HandlerCanary:
    """The watchdog's Subject for a handler of which nothing is known but what it answers."""

    def __init__(self, handler: PayloadHandler, payload: bytes) -> None:
        self._handler = handler
        self._payload = payload

    def vitals(self) -> Sequence[Vitals]:
        return [Vitals(steps=0, busy=False)]

    async def canary(self, part: int) -> None:
        async with aclosing(self._handler(msgspec.Raw(self._payload), Context())) as replies:
            async for _ in replies:
                return


def payload_handler(
    handler: UserHandler, request_type: Any = Any, metrics: EndpointMetrics | None = None
) -> PayloadHandler:
    """Wraps a handler of values into one of encoded payloads; TypeError when it is not an async generator function."""
    decode = payload_decoder(request_type)
    call = with_context(handler)
    metrics = metrics or EndpointMetrics()  # which nobody looks at

    async def serve(payload: msgspec.Raw, context: Context) -> AsyncGenerator[bytes, None]:
        started_s = time.perf_counter()
        metrics.started()
        error_type: str | None = None
        try:
            request = _decoded(decode, payload)
            del payload  # and with it its frame: the reply may take long
            async with closing(call(request, context)) as replies:
                async for reply in replies:
                    yield _encoded(reply)
        except BaseException as error:
            error_type = _error_type(error)
            raise
        finally:
            metrics.ended(time.perf_counter() - started_s, error_type)

    return serve


def _decoded(decode: Callable[[msgspec.Raw], Any], payload: msgspec.Raw) -> Any:
    try:
        return decode(payload)
    except PAYLOAD_ERRORS as error:
        raise InvalidRequestError(f"the request has the wrong shape: {error}") from error


def _encoded(reply: Any) -> bytes:
    try:
        return encode_payload(reply)
    except RequestTooLargeError as error:  # not what the caller has sent: what the handler says
        raise HandlerError(error.message, error_type=type(error).__name__) from error


def _error_type(error: BaseException) -> str:
    """What metrics call it: the code that the caller sees."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return RequestCancelledError.code
    return error.code if isinstance(error, DynamoError) else HandlerError.code


def with_context(handler: UserHandler) -> Handler[Any, Any]:
    """`handler` as a function of request and context, whichever of the two forms it has.

    It gets the context if it has a parameter of that name, or a second one without a default. TypeError when it can't
    be a handler.
    """
    check_handler(handler)
    parameters = inspect.signature(handler).parameters
    if len(parameters) >= 2 and _takes_context(list(parameters.values())[1]):
        return handler
    if "context" in parameters:
        return lambda request, context: handler(request, context=context)
    return lambda request, _context: handler(request)


def check_handler(handler: UserHandler) -> None:
    """Raises TypeError for what cannot answer a request with a stream."""
    if not callable(handler):
        raise TypeError(f"{handler!r} is not a function")
    for function in (handler, type(handler).__call__):  # a function, or an object that can be called like one
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(f"{handler!r} must be an `async def` that answers by `yield`")
    if not inspect.signature(handler).parameters:
        raise TypeError(f"{handler!r} must take a request")


def _takes_context(parameter: inspect.Parameter) -> bool:
    positional = parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return positional and (parameter.name == "context" or parameter.default is inspect.Parameter.empty)
