"""`python -m dynamo.vllm`: vLLM as a worker process."""

import gc
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.registry import Collector

from dynamo.engines.kvbm_follower import KvbmFollower
from dynamo.engines.vllm.args import VllmConfig, parse_command_line
from dynamo.engines.vllm.side_channel import side_channel
from dynamo.engines.worker import Worker, run_workers
from dynamo.errors import ConfigError, UnavailableError
from dynamo.kvbm.figures import kvbm_metrics
from dynamo.kvbm.launch import START_TIMEOUT_S, ensure_service
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.parent import follow_parent
from dynamo.runtime.request_plane.tcp import reachable
from dynamo.telemetry import logging as telemetry_logging
from dynamo.telemetry.kv_event_metrics import KvEventMetrics

if TYPE_CHECKING:
    from vllm.config import VllmConfig as EngineConfig

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
    try:
        seek_block_manager(config)
        with _side_channel(config, engine_config):
            return run_workers(config, [_worker(config, engine_config)])
    except ConfigError as error:
        logger.error("%s", error)
        return 1
    finally:
        gc.unfreeze()  # what stays frozen at the exit, Triton's bindings report as leaks, at length


def seek_block_manager(config: VllmConfig, timeout_s: float = START_TIMEOUT_S) -> None:
    """Sees to it that there is one, if it is wanted. Where that fails, the engine serves without until there is.

    Raises ConfigError for a socket that cannot be.
    """
    if not config.kvbm.is_enabled:
        return
    try:
        ensure_service(config.kvbm, config, timeout_s)
    except UnavailableError as error:
        logger.warning("KV blocks are not kept beyond the device until there is a block manager: %s", error)


def _side_channel(config: VllmConfig, engine_config: "EngineConfig") -> AbstractContextManager[None]:
    if config.worker_type is WorkerType.Aggregated:
        return nullcontext()
    ranks = engine_config.parallel_config.data_parallel_size
    return side_channel(os.environ, reachable(config.rpc_host), ranks)


def _worker(config: VllmConfig, engine_config: "EngineConfig") -> Worker:
    from dynamo.engines.vllm.disagg import handoffs  # after the environment is set, and not for --help
    from dynamo.engines.vllm.engine import VllmEngine
    from dynamo.engines.vllm.kvbm_settings import owner_of_rank, settings_of

    handed = handoffs(engine_config.kv_transfer_config, config.worker_type, config.kv_handoff_timeout_s)
    kvbm = settings_of(engine_config.kv_transfer_config)
    # All data-parallel ranks have one pool, and come and go together: to follow one of them is enough.
    follower = KvbmFollower(Path(kvbm.socket), owner_of_rank(kvbm.owner, 0)) if kvbm is not None else None
    engine = VllmEngine(engine_config, handed, follower)
    metrics: list[Collector] = [KvEventMetrics(engine.kv_event_figures)]
    if follower is not None:
        metrics.append(kvbm_metrics(follower.figures))
    if config.worker_type is not WorkerType.Aggregated:
        metrics.append(engine.kv_transfers)
    return Worker(engine=engine, model_path=config.model_path(), model_name=config.model_name(), metrics=metrics)
