"""`python -m dynamo.mocker`: the simulated engine as a process."""

import logging
import sys
from collections.abc import Sequence

from dynamo.config import parse
from dynamo.engines.mocker.args import MockerConfig
from dynamo.engines.mocker.engine import create_engines
from dynamo.engines.worker import Worker, run_workers
from dynamo.errors import ConfigError
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
    return run_workers(
        config, [Worker(engine=e, model_path=config.model_path, model_name=config.model_name) for e in engines]
    )
