"""vLLM's NIXL connector, on a machine without an accelerator.

As it is, it takes there what the model needs. NIXL's thread polls without a pause, all of a core for each worker, and
the thread that computes moves to the last core, where others compute: on two cores a prefill took seven times as long.
Here NIXL has no thread: vLLM asks it how things stand in each step, and makes steps as long as anything is under way.
"""

import os
import uuid
from typing import TYPE_CHECKING

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.nixl import NixlConnector as VllmNixlConnector

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig


class NixlConnector(VllmNixlConnector):  # type: ignore[misc] # vLLM is untyped here
    """By the same name, because vLLM checks other settings against that."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: "KVCacheConfig") -> None:
        cpus = os.sched_getaffinity(0)
        super().__init__(vllm_config, role, kv_cache_config)
        if role is KVConnectorRole.WORKER:
            os.sched_setaffinity(0, cpus)
            self.connector_worker.nixl_wrapper = _threadless_agent()


def _threadless_agent() -> object:
    """For use by several threads in turn, as vLLM does: it introduces itself to peers in one of its own."""
    from nixl._api import nixl_agent, nixl_agent_config, nixl_thread_sync_t  # vLLM sets the environment for it first

    config = nixl_agent_config(
        enable_prog_thread=False, capture_telemetry=True, sync_mode=nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
    )
    return nixl_agent(str(uuid.uuid4()), config)
