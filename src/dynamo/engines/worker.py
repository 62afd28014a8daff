"""The process around an engine: starts it, announces it, serves it, and ends it in order."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import uvloop
from prometheus_client.registry import Collector

from dynamo.engines.base import EngineInfo, LLMEngine
from dynamo.engines.config import WorkerConfig
from dynamo.engines.pending_prompts import PendingPrompts
from dynamo.engines.vitals import EngineVitals
from dynamo.errors import DynamoError, InternalError
from dynamo.llm.model_card import default_name
from dynamo.llm.register import register_model
from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import ModelInput, ModelType, WorkerType
from dynamo.router.load_publisher import serve_load
from dynamo.router.publisher import KvEventFeed
from dynamo.runtime.context import Context
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.handler import closing
from dynamo.runtime.parent import follow_parent
from dynamo.runtime.process import announce_ready, settle_memory
from dynamo.runtime.system_server import system_server
from dynamo.runtime.watchdog import Vitals
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
            await _serve(runtime if position == 0 else runtime.sibling(), config, worker)
            waiting.append(asyncio.create_task(worker.engine.failed()))
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


async def _serve(runtime: DistributedRuntime, config: WorkerConfig, worker: Worker) -> None:
    """Starts the engine and announces it; the model becomes visible last."""
    endpoint_id, template = config.endpoint_id(), config.chat_template()  # what is wrong with them is said at once
    kv_events = KvEventFeed()
    has_kv_events = worker.engine.publish_kv_events(kv_events)
    info: EngineInfo = await worker.engine.start()
    endpoint = runtime.endpoint(str(endpoint_id))
    engine_endpoint = EngineEndpoint(worker.engine)
    await serve_load(endpoint, engine_endpoint.load)
    if has_kv_events:
        await kv_events.start(endpoint)
    await endpoint.start(engine_endpoint.generate, request_type=PreprocessedRequest)
    await register_model(
        ModelInput.Tokens,
        worker.model_type,
        endpoint,
        worker.model_path,
        worker.name,
        worker_type=config.worker_type,
        context_length=info.context_length,
        runtime_config=info.limits,
        custom_template_path=template,
        features=info.features,
        handoff_format=info.handoff_format,
    )
    vitals = EngineVitals(worker.engine, worker.name, engine_endpoint.vitals)
    runtime.watch(endpoint_id, vitals, "the engine makes no progress")


class EngineEndpoint:
    """An engine's handlers."""

    def __init__(self, engine: LLMEngine) -> None:
        self._engine = engine
        self._pending = PendingPrompts()
        self._aborts: set[asyncio.Task[None]] = set()
        self._outputs = 0

    async def generate(self, request: PreprocessedRequest, context: Context) -> AsyncIterator[LLMEngineOutput]:
        unfollow = context.on_stop(self._abort)
        self._pending.add(request)
        pending = True
        try:
            async with closing(self._engine.generate(request, context)) as outputs:
                async for output in outputs:
                    if pending:
                        self._pending.remove(request)
                        pending = False
                    self._outputs += 1
                    yield output
        finally:
            if pending:
                self._pending.remove(request)
            unfollow()

    def load(self) -> list[WorkerLoad]:
        """The load at this moment."""
        return self._pending.fill_in(self._engine.load())

    def vitals(self) -> Vitals:
        """What can be seen of any engine. Who waits for more than its first output may do so for a slow reader."""
        return Vitals(steps=self._outputs, busy=bool(self._pending))

    def _abort(self, context: Context) -> None:
        """Turns the caller's stop into the engine's abort, so that the stream ends with a finish reason."""
        if not context.is_killed():  # then the stream is being closed, which frees the request too
            task = asyncio.create_task(self._engine.abort(context.id()))
            self._aborts.add(task)
            task.add_done_callback(self._aborts.discard)
