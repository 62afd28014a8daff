"""The process around an engine: starts it, announces it, serves it, and ends it in order."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import uvloop
from prometheus_client.registry import Collector

from dynamo.engines.base import EngineInfo, LLMEngine
from dynamo.engines.config import DisaggregatedWorkerConfig, WorkerConfig
from dynamo.engines.role_changes import RoleChanges
from dynamo.engines.served_engine import ServedEngine
from dynamo.errors import DynamoError, InternalError
from dynamo.llm.model_card import default_name
from dynamo.protocols.model_card import ModelType, WorkerType
from dynamo.router.publisher import KvEventFeed
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.parent import follow_parent
from dynamo.runtime.process import announce_ready, settle_memory
from dynamo.runtime.system_server import system_server
from dynamo.runtime.worker import run_until_shutdown, shutdown_on_signals
from dynamo.telemetry import logging as telemetry_logging

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One engine and the model that it serves."""

    engine: LLMEngine
    model_path: str
    model_name: str | None = None  # None: the last part of the path
    model_type: ModelType = field(default=ModelType.Chat | ModelType.Completions)
    metrics: Sequence[Collector] = ()  # of the engine itself, shown beside those of all workers

    @property
    def name(self) -> str:
        return self.model_name or default_name(self.model_path)


def run_workers(config: WorkerConfig, workers: Sequence[Worker]) -> int:
    """Runs workers until SIGTERM or Ctrl-C, or until an engine fails; the process's exit code."""
    follow_parent()
    telemetry_logging.configure()
    try:
        return uvloop.run(_main(config, workers))
    except DynamoError as error:
        logger.error("%s", error)  # the user's to mend, a traceback would hide it
        return 1
    except KeyboardInterrupt:
        return 130


async def _main(config: WorkerConfig, workers: Sequence[Worker]) -> int:
    runtime = DistributedRuntime(config=config)
    with shutdown_on_signals(runtime):
        return await run_until_shutdown(runtime, _serve_all(runtime, config, workers)) or 0


async def _serve_all(runtime: DistributedRuntime, config: WorkerConfig, workers: Sequence[Worker]) -> int:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            system_server(runtime.health, runtime.registry, host=config.system_host, port=config.system_port)
        )
        waiting = [asyncio.create_task(_shut_down(runtime))]
        for position, worker in enumerate(workers):
            stack.push_async_callback(worker.engine.cleanup)
            for collector in worker.metrics:
                runtime.registry.register(collector)
            changes = await _serve(runtime if position == 0 else runtime.sibling(), config, worker)
            waiting.append(asyncio.create_task(worker.engine.failed()))
            if changes is not None:
                stack.push_async_callback(changes.close)
                waiting.append(asyncio.create_task(changes.failed()))
        settle_memory()
        role = "" if config.worker_type is WorkerType.Aggregated else f" ({config.worker_type.value})"
        announce_ready(", ".join(sorted({w.name for w in workers})) + role)
        done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if failures := [reason for task in done if (reason := task.result())]:
            raise InternalError(f"the engine has failed: {'; '.join(failures)}")
        return 0


async def _shut_down(runtime: DistributedRuntime) -> str:
    """Returns when the runtime has drained: engines must live until then. That is no failure."""
    await runtime.wait_for_shutdown()
    await runtime.close()
    return ""


async def _serve(runtime: DistributedRuntime, config: WorkerConfig, worker: Worker) -> RoleChanges | None:
    """Starts the engine and announces it; the model becomes visible last.

    Returns what may change its role, where it has one.
    """
    config.endpoint_id(), config.chat_template()  # what is wrong with them is said at once
    kv_events = KvEventFeed()
    has_kv_events = worker.engine.publish_kv_events(kv_events)
    info: EngineInfo = await worker.engine.start()
    served = ServedEngine(
        runtime,
        config,
        worker.engine,
        info,
        kv_events if has_kv_events else None,
        name=worker.name,
        model_path=worker.model_path,
        model_type=worker.model_type,
    )
    await served.announce()
    if not isinstance(config, DisaggregatedWorkerConfig) or config.worker_type is WorkerType.Aggregated:
        return None
    changes = RoleChanges(served)
    await changes.start()
    return changes
