"""The process: `python -m dynamo.kvbm`."""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry

from dynamo.config import parse
from dynamo.errors import DynamoError
from dynamo.kvbm.config import ServiceConfig
from dynamo.kvbm.election import elected
from dynamo.kvbm.figures import kvbm_metrics
from dynamo.kvbm.pools import Pools
from dynamo.kvbm.server import KvbmServer
from dynamo.kvbm.tiers import Tiers
from dynamo.runtime.health import Health
from dynamo.runtime.parent import follow_parent
from dynamo.runtime.process import announce_ready, settle_memory
from dynamo.runtime.system_server import system_server
from dynamo.telemetry import logging as telemetry_logging
from dynamo.telemetry.process_metrics import ProcessMetrics

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> int:
    """0 after a signal, `dynamo kvbm stop` or when nobody needs it any more; 1 when it cannot run."""
    follow_parent()
    telemetry_logging.configure()
    config = parse(ServiceConfig, sys.argv[1:] if argv is None else argv, prog="python -m dynamo.kvbm")
    try:
        with elected(config.socket_path):
            uvloop.run(serve(config))
    except DynamoError as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


async def serve(config: ServiceConfig) -> None:
    """Returns when the service is to end. Raises ConfigError."""
    stop = asyncio.Event()
    health, registry = Health(), CollectorRegistry()
    ProcessMetrics(registry)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_stopped_by_signals(stop))
        tiers = await stack.enter_async_context(Tiers(config))
        pools = Pools(tiers.make, config.kvbm_linger_s)
        stack.push_async_callback(pools.close)
        registry.register(kvbm_metrics(pools.figures))
        await stack.enter_async_context(
            system_server(health, registry, host=config.system_host, port=config.system_port)
        )
        server = KvbmServer(config.socket_path, pools, stop)
        server.start()
        stack.push_async_callback(server.close)
        settle_memory()
        health.set_ready(True)
        announce_ready(str(config.socket_path))
        await _first(stop.wait(), pools.abandoned())
        health.set_ready(False)


async def _first(*waits: Coroutine[Any, Any, object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@contextlib.contextmanager
def _stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
