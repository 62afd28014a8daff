"""Decorators for the programs that users write, and the frame around every process of the framework."""

import asyncio
import contextlib
import functools
import inspect
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from dynamo.errors import InvalidRequestError
from dynamo.runtime.component import UserHandler
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.distributed import DistributedRuntime

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_LEAVE_S = 5.0  # how long the worker's own code may take to return once everything is closed


def dynamo_worker(
    enable_nats: bool | None = None, *, config: RuntimeConfig | None = None
) -> Callable[[Callable[Concatenate[DistributedRuntime, P], Awaitable[R]]], Callable[P, Awaitable[R | None]]]:
    """Gives the decorated function a DistributedRuntime as its first argument.

    SIGTERM and Ctrl-C shut the runtime down in order; a second one ends the process at once. `enable_nats` is accepted
    for upstream's programs and has no effect.
    """

    def decorate(
        function: Callable[Concatenate[DistributedRuntime, P], Awaitable[R]],
    ) -> Callable[P, Awaitable[R | None]]:
        @functools.wraps(function)
        async def run(*args: P.args, **kwargs: P.kwargs) -> R | None:
            runtime = DistributedRuntime(config=config)
            with shutdown_on_signals(runtime):
                return await run_until_shutdown(runtime, function(runtime, *args, **kwargs))

        return run

    return decorate


def dynamo_endpoint(request_model: type, response_model: type) -> Callable[[UserHandler], UserHandler]:
    """Hands the handler a `request_model` made of the request; InvalidRequestError when it does not fit.

    Any type that msgspec can convert to will do, and pydantic models (by their model_validate). `response_model` only
    documents: items pass through unchanged, as upstream.
    """

    def decorate(function: UserHandler) -> UserHandler:
        position = 1 if _is_method(function) else 0

        @functools.wraps(function)
        async def handler(*args: Any) -> AsyncIterator[Any]:
            request = _convert(args[position], request_model)
            async for item in function(*args[:position], request, *args[position + 1 :]):
                yield item

        return handler

    return decorate


@contextlib.contextmanager
def shutdown_on_signals(runtime: DistributedRuntime) -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM shut `runtime` down; the second one exits without any ceremony."""
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if runtime.is_shutting_down:
            os._exit(128 + number)
        logger.info("%s: shutting down", number.name)
        runtime.shutdown()

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def run_until_shutdown(runtime: DistributedRuntime, work: Awaitable[R]) -> R | None:
    """The result of `work`, or None when the runtime was shut down before it had one. Closes the runtime."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.create_task(runtime.wait_for_shutdown())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        await runtime.close()
        await asyncio.wait({task}, timeout=_LEAVE_S if runtime.health.endpoints else 0)
        return task.result() if task.done() else None
    finally:
        for unfinished in (task, stopped):
            unfinished.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)
        await runtime.close()


def _convert(value: Any, model: type) -> Any:
    validate = getattr(model, "model_validate", None)  # pydantic's protocol, without depending on pydantic
    try:
        return validate(value) if validate is not None else msgspec.convert(value, model)
    except ValueError as error:  # msgspec's and pydantic's ValidationError are ValueErrors
        raise InvalidRequestError(f"the request is not a {model.__name__}: {error}") from error


def _is_method(function: UserHandler) -> bool:
    return next(iter(inspect.signature(function).parameters), None) == "self"
