"""`python -m dynamo.planner`"""

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from dynamo.errors import DynamoError
from dynamo.planner.connectors.base import Connector
from dynamo.planner.connectors.make import make_connector
from dynamo.planner.decisions import DECISIONS_ENDPOINT, PLANNER_COMPONENT, Decisions, PlannerSettings
from dynamo.planner.frontend_source import ANSWER_S, FrontendSource
from dynamo.planner.load_source import LoadSource
from dynamo.planner.make import make_planner
from dynamo.planner.process_config import PlannerConfig, planner_config
from dynamo.planner.profile_file import read_profile
from dynamo.planner.prometheus_source import PrometheusSource
from dynamo.planner.run import PlannerLoop
from dynamo.planner.source import Source, TrafficSource
from dynamo.planner.workers import Workers
from dynamo.protocols.traffic import FRONTEND_COMPONENT, TRAFFIC_ENDPOINT, ModelTraffic
from dynamo.runtime.background import kept_up
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.instance import EndpointId
from dynamo.runtime.parent import follow_parent
from dynamo.runtime.process import announce_ready, settle_memory
from dynamo.runtime.system_server import system_server
from dynamo.runtime.worker import run_until_shutdown, shutdown_on_signals
from dynamo.telemetry import logging as telemetry_logging
from dynamo.telemetry.planner_metrics import PlannerMetrics

logger = logging.getLogger(__name__)

_MARGIN_S = 1.0  # what a source may need beyond the time that it gives those whom it asks


def main(argv: Sequence[str] | None = None) -> int:
    follow_parent()
    telemetry_logging.configure()
    try:
        config = planner_config(sys.argv[1:] if argv is None else argv)
        return uvloop.run(_main(config)) or 0
    except DynamoError as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        return 130


async def _main(config: PlannerConfig) -> int | None:
    runtime = DistributedRuntime(config=config)
    with shutdown_on_signals(runtime):
        return await run_until_shutdown(runtime, run_planner(runtime, config, lambda: _announce(config)))


def _announce(config: PlannerConfig) -> None:
    settle_memory()
    announce_ready(f"planner of {config.worker_namespace}")


async def run_planner(runtime: DistributedRuntime, config: PlannerConfig, on_ready: Callable[[], None]) -> int:
    """Until the runtime is shut down. Raises ConfigError for options with which no planner can be made."""
    options = config.planner
    profile = None if options.profile is None else read_profile(Path(options.profile))
    endpoint = runtime.namespace(config.worker_namespace).component(PLANNER_COMPONENT).endpoint(DECISIONS_ENDPOINT)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            system_server(runtime.health, runtime.registry, host=config.system_host, port=config.system_port)
        )
        connector = await make_connector(runtime, config)
        stack.push_async_callback(connector.close)
        traffic = _traffic_source(runtime, config)
        stack.push_async_callback(traffic.close)
        workers = Workers(runtime.discovery, config.worker_namespace, config.model_name)
        stack.callback(workers.close)
        loads = LoadSource(runtime, workers, options.interval_s)
        stack.push_async_callback(loads.close)
        decisions = Decisions(_settings(config))
        await decisions.serve(endpoint)
        converts = options.convert_roles and await _converts(connector, config)
        planner = make_planner(options, profile, converts=converts)
        loop = PlannerLoop(
            planner,
            Source(
                traffic,
                loads,
                connector,
                traffic_timeout_s=ANSWER_S + _MARGIN_S,
                connector_timeout_s=config.connector_timeout_s,
            ),
            connector,
            decisions,
            PlannerMetrics(runtime.registry),
            interval_s=options.interval_s,
            connector_timeout_s=config.connector_timeout_s,
            advisory=options.advisory,
        )
        running = kept_up(loop.run, "planner")
        on_ready()
        await runtime.wait_for_shutdown()
        running.cancel()
        await asyncio.wait([running])
        await runtime.close()
        return 0


async def _converts(connector: Connector, config: PlannerConfig) -> bool:
    """Whether it turns workers from one role to another; it may know only once it has answered, which is waited for."""
    while True:
        try:
            async with asyncio.timeout(config.connector_timeout_s):
                await connector.fleets()
        except (DynamoError, TimeoutError) as error:
            logger.warning("waiting for what starts and ends workers: %s", str(error) or "no answer")
            await asyncio.sleep(config.planner.interval_s)
        else:
            if not connector.converts:
                logger.warning("--convert-roles has no effect: these workers cannot turn from one role to another")
            return connector.converts


def _traffic_source(runtime: DistributedRuntime, config: PlannerConfig) -> TrafficSource:
    if config.prometheus_url is not None:
        return PrometheusSource(
            config.prometheus_url,
            window_s=config.prometheus_window_s,
            labels=config.prometheus_labels,
            model=config.model_name,
            timeout_s=ANSWER_S,
        )
    frontends = EndpointId(config.worker_namespace, FRONTEND_COMPONENT, TRAFFIC_ENDPOINT)
    return FrontendSource(runtime.client(frontends, list[ModelTraffic]), model=config.model_name)


def _settings(config: PlannerConfig) -> PlannerSettings:
    options = config.planner
    return PlannerSettings(
        connector=config.connector,
        mode=options.mode,
        predictor=options.predictor,
        advisory=options.advisory,
        ttft_ms=options.ttft_ms,
        itl_ms=options.itl_ms,
        interval_s=options.interval_s,
    )
