"""`python -m dynamo.router`: the KV router as a service, for any client to ask.

For the workers of NAMESPACE.backend.generate it serves NAMESPACE.router with the endpoints `generate`, which passes
requests on, and `best_worker`, `mark_prefill_complete`, `free`, `get_potential_loads` for clients that call the workers
themselves. Frontends with --router-service find it beside the workers, where it takes reservations.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import uvloop

from dynamo.config import group, option, parse
from dynamo.errors import DynamoError, InvalidRequestError, ModelNotFoundError
from dynamo.llm.kv_router import KvRouter
from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.model_card import WorkerType
from dynamo.protocols.routing import BestWorkerRequest, PotentialLoad, RequestIdMessage, RoutingReport
from dynamo.router.config import KvRouterConfig
from dynamo.router.reservations import Reservations, reservations_endpoint
from dynamo.router.routing_report import routing_report
from dynamo.runtime.background import in_background
from dynamo.runtime.component import Endpoint
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.context import Context
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.handler import closing
from dynamo.runtime.instance import EndpointId
from dynamo.runtime.parent import follow_parent
from dynamo.runtime.process import announce_ready, settle_memory
from dynamo.runtime.system_server import system_server
from dynamo.runtime.worker import run_until_shutdown, shutdown_on_signals
from dynamo.telemetry import logging as telemetry_logging
from dynamo.telemetry.router_metrics import RouterMetrics

logger = logging.getLogger(__name__)

COMPONENT = "router"
_RETRY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig(RuntimeConfig):
    """Route the requests of any client to where their KV cache is."""

    endpoint: str | None = option(
        None,
        flag="--endpoint",
        env="DYN_ENDPOINT",
        metavar="PATH",
        help="the workers' endpoint, as dyn://namespace.component.endpoint; without it NAMESPACE.backend.generate",
    )
    model_name: str = option(
        "",
        flag="--model-name",
        metavar="NAME",
        help="the model whose workers these are; without it the first one that is announced",
    )
    kv_router: KvRouterConfig = group(KvRouterConfig)

    def endpoint_id(self) -> EndpointId:
        """Raises ConfigError when --endpoint or --namespace is not of the right form."""
        return self.workers_endpoint(self.endpoint)


class RouterService:
    """The endpoints' handlers, for one router after the other."""

    def __init__(self, router: KvRouter) -> None:
        """Closes `router` with itself."""
        self.router = router
        self._reservations = Reservations(router.placer)

    @property
    def component(self) -> str:
        """Under which name clients find it: that of decode workers is not that of the prefill workers beside them."""
        return f"prefill_{COMPONENT}" if self.router.worker_type is WorkerType.Prefill else COMPONENT

    async def start(self, runtime: DistributedRuntime, namespace: str) -> None:
        """Serves all of them."""
        reservations = reservations_endpoint(self.router.endpoint.id, self.router.model_name)
        await self._reservations.start(Endpoint(runtime, reservations))
        component = runtime.namespace(namespace).component(self.component)
        await component.endpoint("best_worker").start(self.best_worker, request_type=BestWorkerRequest)
        await component.endpoint("mark_prefill_complete").start(
            self.mark_prefill_complete, request_type=RequestIdMessage
        )
        await component.endpoint("free").start(self.free, request_type=RequestIdMessage)
        await component.endpoint("get_potential_loads").start(self.get_potential_loads, request_type=BestWorkerRequest)
        await component.endpoint("generate").start(self.generate, request_type=PreprocessedRequest)

    async def replace(self, router: KvRouter) -> None:
        """From now on this router decides, for the same model. What the former has sent goes on, but is not counted."""
        former, self.router = self.router, router
        self._reservations.use(router.placer)
        await former.close()

    async def close(self) -> None:
        await self.router.close()

    async def generate(self, request: PreprocessedRequest, context: Context) -> AsyncIterator[LLMEngineOutput]:
        if self.router.model_name not in ("", request.model):
            raise ModelNotFoundError(f"this router is for {self.router.model_name!r}, not {request.model!r}")
        async with closing(self.router.serve(request, context)) as outputs:
            async for output in outputs:
                yield output

    async def best_worker(self, request: BestWorkerRequest, context: Context) -> AsyncIterator[RoutingReport]:
        try:
            decision = await self.router.best_worker(
                request.token_ids,
                request_id=request.request_id,
                cache_salt=request.cache_salt,
                lora_name=request.lora_name,
                priority=request.priority,
                session_id=request.session_id,
                context=context,
            )
        except ValueError as error:
            raise InvalidRequestError(str(error), param="request_id") from error
        yield routing_report(decision, self.router.block_size)

    async def mark_prefill_complete(self, request: RequestIdMessage) -> AsyncIterator[bool]:
        self.router.mark_prefill_complete(request.request_id)
        yield True

    async def free(self, request: RequestIdMessage) -> AsyncIterator[bool]:
        self.router.free(request.request_id)
        yield True

    async def get_potential_loads(self, request: BestWorkerRequest) -> AsyncIterator[list[PotentialLoad]]:
        yield self.router.get_potential_loads(
            request.token_ids, cache_salt=request.cache_salt, lora_name=request.lora_name
        )


def main(argv: Sequence[str] | None = None) -> int:
    follow_parent()
    telemetry_logging.configure()
    config = parse(RouterConfig, sys.argv[1:] if argv is None else argv, prog="python -m dynamo.router")
    try:
        return uvloop.run(_main(config)) or 0
    except DynamoError as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        return 130


async def _main(config: RouterConfig) -> int | None:
    runtime = DistributedRuntime(config=config)
    with shutdown_on_signals(runtime):
        return await run_until_shutdown(runtime, _serve(runtime, config))


async def _serve(runtime: DistributedRuntime, config: RouterConfig) -> int:
    endpoint_id = config.endpoint_id()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            system_server(runtime.health, runtime.registry, host=config.system_host, port=config.system_port)
        )
        workers = runtime.endpoint(str(endpoint_id))
        metrics = RouterMetrics(runtime.registry)

        async def discovered(model_name: str) -> KvRouter:
            router = await KvRouter.discover(workers, config.kv_router, model_name=model_name)
            metrics.add(router.model_name, router.worker_type, router.placer)  # in the place of the one before
            return router

        async def follow() -> None:
            """Begins anew when all workers were replaced by such as have other blocks or files."""
            while True:
                former = service.router
                await former.outlived()
                logger.warning(
                    "all workers of %r have other blocks or files now, routing begins anew", former.model_name
                )
                await asyncio.sleep(_RETRY_S)
                await service.replace(await discovered(former.model_name))

        logger.info("waiting for workers at %s", endpoint_id)
        service = RouterService(await discovered(config.model_name))
        stack.push_async_callback(service.close)
        await service.start(runtime, endpoint_id.namespace)
        follower = in_background(follow(), "router-follow")
        settle_memory()
        announce_ready(f"{endpoint_id.namespace}.{service.component}")
        await runtime.wait_for_shutdown()
        follower.cancel()
        await runtime.close()
        return 0
