"""`python -m dynamo.vllm`: vLLM as a worker process."""

import gc
import logging
import sys
from collections.abc import Sequence

from dynamo.engines.vllm.args import parse_command_line
from dynamo.engines.worker import Worker, run_workers
from dynamo.errors import ConfigError
from dynamo.runtime.parent import follow_parent
from dynamo.telemetry import logging as telemetry_logging
from dynamo.telemetry.kv_event_metrics import KvEventMetrics

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    follow_parent()  # importing vLLM takes seconds, in which the parent may die too
    telemetry_logging.configure()
    try:
        config, engine_config = parse_command_line(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:  # importing vLLM takes long enough to change one's mind
        return 130
    from dynamo.engines.vllm.engine import VllmEngine  # after the environment is set, and not for --help

    engine = VllmEngine(engine_config)
    worker = Worker(
        engine=engine,
        model_path=config.model_path(),
        model_name=config.model_name(),
        metrics=[KvEventMetrics(engine.kv_event_figures)],
    )
    try:
        return run_workers(config, [worker])
    finally:
        gc.unfreeze()  # what stays frozen at the exit, Triton's bindings report as leaks, at length
