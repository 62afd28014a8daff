"""Decorators for the programs that users write, and the frame around every process of the framework."""

import asyncio
import contextlib
import functools
import inspect
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from dynamo.errors import DrainingError, InvalidRequestError
from dynamo.runtime.component import UserHandler, check_handler
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.handler import closing

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LEAVE_S = 5.0  # how long the worker's own code may take to return once everything is closed


def dynamo_worker(
    enable_nats: bool | None = None, *, config: RuntimeConfig | None = None
) -> Callable[[Callable[Concatenate[DistributedRuntime, P], Awaitable[R]]], Callable[P, Coroutine[Any, Any, R | None]]]:
    """Gives the decorated function a DistributedRuntime as its first argument.

    SIGTERM and Ctrl-C shut the runtime down in order: a function that serves gets to return when its requests have
    ended, one that only calls others is cancelled, and the program exits with 128 plus the signal's number. A second
    signal ends the process at once. With DYN_SYSTEM_PORT there is a system server, see system_server.py. `enable_nats`
    is accepted for upstream's programs and has no effect.
    """

    def decorate(
        function: Callable[Concatenate[DistributedRuntime, P], Awaitable[R]],
    ) -> Callable[P, Coroutine[Any, Any, R | None]]:
        @functools.wraps(function)
        async def run(*args: P.args, **kwargs: P.kwargs) -> R | None:
            runtime = DistributedRuntime(config=config)
            async with _system_server(runtime):
                with shutdown_on_signals(runtime) as signals:
                    result = await run_until_shutdown(runtime, function(runtime, *args, **kwargs))
            if signals and result is None and not runtime.health.endpoints:
                sys.exit(128 + signals[0])
            return result

        return run

    return decorate


def dynamo_endpoint(request_model: type, response_model: type) -> Callable[[UserHandler], UserHandler]:
    """Hands the handler a `request_model` made of the request; InvalidRequestError when it does not fit.

    Any type that msgspec can convert to will do, and pydantic models (by their model_validate). `response_model` only
    documents: items pass through unchanged, as upstream.
    """

    def decorate(function: UserHandler) -> UserHandler:
        check_handler(function)
        position = 1 if _is_method(function) else 0

        @functools.wraps(function)
        async def handler(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            request = _convert(args[position], request_model)
            async with closing(function(*args[:position], request, *args[position + 1 :], **kwargs)) as items:
                async for item in items:
                    yield item

        return handler

    return decorate


@contextlib.contextmanager
def shutdown_on_signals(runtime: DistributedRuntime) -> Iterator[list[signal.Signals]]:
    """Within the block, SIGINT and SIGTERM shut `runtime` down; the second one exits without any ceremony.

    Gives the list of signals received, which is empty at first.
    """
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        if runtime.is_shutting_down:
            os._exit(128 + number)
        logger.info(
            "%s: shutting down; requests under way may go on for %g s, a second signal ends them now",
            number.name,
            runtime.config.shutdown_timeout_s,
        )
        received.append(number)
        runtime.shutdown()

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield received
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def run_until_shutdown(runtime: DistributedRuntime, work: Awaitable[R]) -> R | None:
    """The result of `work`, or None when the runtime was shut down before it had one. Closes the runtime.

    At a shutdown, work that serves endpoints may go on until they have drained and it returns; other work is cancelled.
    """
    task = asyncio.ensure_future(work)
    stopped = asyncio.create_task(runtime.wait_for_shutdown())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if runtime.health.endpoints:
            await runtime.close()
            await asyncio.wait({task}, timeout=_LEAVE_S)
        task.cancel()
        await asyncio.wait({task})
        return None if task.cancelled() else task.result()
    except DrainingError:
        if runtime.is_shutting_down:  # it was told to end before it had begun to serve
            return None
        raise
    finally:
        for unfinished in (task, stopped):
            unfinished.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)
        await runtime.close()


@contextlib.asynccontextmanager
async def _system_server(runtime: DistributedRuntime) -> AsyncIterator[None]:
    config = runtime.config
    if config.system_port < 0:
        yield
        return
    from dynamo.runtime.system_server import system_server  # an HTTP server, which most programs do without

    async with system_server(runtime.health, runtime.registry, host=config.system_host, port=config.system_port):
        yield


def _convert(value: Any, model: type) -> Any:
    validate = getattr(model, "model_validate", None)  # pydantic's protocol, without depending on pydantic
    try:
        return validate(value) if validate is not None else msgspec.convert(value, model)
    except ValueError as error:  # msgspec's and pydantic's ValidationError are ValueErrors
        name = getattr(model, "__name__", str(model))
        raise InvalidRequestError(f"the request is not a {name}: {error}") from error


def _is_method(function: UserHandler) -> bool:
    return next(iter(inspect.signature(function).parameters), None) == "self"
