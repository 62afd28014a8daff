"""The connector, with a clock at each of its hooks: the CPU time that it takes from an engine's own threads."""

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.kvbm_hooks import DIRECTORY, HookFigures, write_figures
from dynamo.engines.vllm.kvbm_connector import DynamoKvbmConnector

_HOOKS = (
    "on_new_request",
    "get_num_new_matched_tokens",
    "update_state_after_alloc",
    "build_connector_meta",
    "update_connector_output",
    "request_finished",
    "has_pending_push_work",
    "take_events",
    "bind_connector_metadata",
    "handle_preemptions",
    "start_load_kv",
    "wait_for_layer_load",
    "save_kv_layer",
    "wait_for_save",
    "get_transfer_results",
    "get_block_ids_with_load_errors",
    "build_connector_worker_meta",
)
_WRITE_EVERY = 50  # calls


class TimedKvbmConnector(DynamoKvbmConnector):
    """Loaded by vLLM in the connector's place."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._figures = HookFigures(role.name.lower())
        self._directory = Path(os.environ[DIRECTORY])
        for name in _HOOKS:
            setattr(self, name, self._timed(getattr(self, name)))

    def _timed(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(hook)
        def timed(*args: Any, **kwargs: Any) -> Any:
            figures = self._figures
            cpu_s, wall_s = time.thread_time(), time.perf_counter()
            try:
                return hook(*args, **kwargs)
            finally:
                figures.cpu_s += time.thread_time() - cpu_s
                figures.wall_s += time.perf_counter() - wall_s
                figures.calls += 1
                if figures.calls % _WRITE_EVERY == 0:
                    write_figures(self._directory, figures)

        return timed
