"""`python -m dynamo.mocker`: the simulated engine as a process."""

import logging
import sys
from collections.abc import Sequence

from prometheus_client.registry import Collector

from dynamo.config import parse
from dynamo.engines.mocker.args import MockerConfig
from dynamo.engines.mocker.engine import MockerEngine, create_engines
from dynamo.engines.worker import Worker, run_workers
from dynamo.errors import ConfigError
from dynamo.kvbm.figures import kvbm_metrics
from dynamo.protocols.kvbm import PoolFigures
from dynamo.protocols.model_card import WorkerType
from dynamo.telemetry import logging as telemetry_logging

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    telemetry_logging.configure()
    config = parse(MockerConfig, sys.argv[1:] if argv is None else argv, prog="python -m dynamo.mocker")
    try:
        engines = create_engines(config)
    except ConfigError as error:
        logger.error("%s", error)
        return 1
    return run_workers(config, _workers(config, engines))


def _workers(config: MockerConfig, engines: Sequence[MockerEngine]) -> list[Worker]:
    """The first one shows the metrics of all."""
    shown: list[Collector] = [] if config.worker_type is WorkerType.Aggregated else [engines[0].metrics]
    if config.kvbm.is_enabled:
        shown.append(kvbm_metrics(lambda: _pools(engines)))
    return [
        Worker(
            engine=engine,
            model_path=config.model_path,
            model_name=config.model_name,
            metrics=shown if engine is engines[0] else [],
        )
        for engine in engines
    ]


def _pools(engines: Sequence[MockerEngine]) -> list[PoolFigures]:
    """Of each worker that has tiers, one pool."""
    return [figures for number, engine in enumerate(engines) if (figures := engine.pool_figures(number)) is not None]
