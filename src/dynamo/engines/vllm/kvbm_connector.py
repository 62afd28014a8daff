"""vLLM's connector to the block manager: what vLLM calls, at its scheduler and at each rank."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from dynamo.engines.vllm.kvbm_layout import cache_parts, check_cache, pool_spec
from dynamo.engines.vllm.kvbm_refusals import refusals_left
from dynamo.engines.vllm.kvbm_scheduler import KvbmScheduler
from dynamo.engines.vllm.kvbm_settings import owner_of_rank, settings_of
from dynamo.errors import ConfigError
from dynamo.kvbm.client import MappedPool, ServiceClient, map_pool
from dynamo.kvbm.jobs import Done, Step
from dynamo.kvbm.rank import Copier, Rank, RankPart
from dynamo.protocols.kvbm import KVBM_VERSION, Attach

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

_MAP_S = 2.0


@dataclass
class KvbmStep(KVConnectorMetadata):  # type: ignore[misc] # vLLM is untyped here
    step: Step


@dataclass
class KvbmDone(KVConnectorWorkerMetadata):  # type: ignore[misc]
    done: Done

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        assert isinstance(other, KvbmDone)
        self.done.merge(other.done)
        return self


class DynamoKvbmConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Copies run beside the model's steps: what a step computes is saved during later ones, and what a request needs is
    loaded while others run.
    """

    _cache_hit_source = CacheHitSource.HOST

    def __init__(self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig") -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        settings = settings_of(vllm_config.kv_transfer_config)
        if settings is None:
            raise ConfigError("this connector is chosen by --kvbm-host-gb")
        with refusals_left(settings):
            check_cache(kv_cache_config)
            spec = pool_spec(vllm_config, kv_cache_config, settings)
        parallel = vllm_config.parallel_config
        self._settings = settings
        self._socket = Path(settings.socket)
        self._attach = Attach(
            version=KVBM_VERSION,
            owner=owner_of_rank(settings.owner, parallel.data_parallel_index),
            pool=spec,
            options=settings.options,
            rank=parallel.rank if role is KVConnectorRole.WORKER else None,
        )
        self._scheduler_half: KvbmScheduler | None = None
        self._rank_half: Rank[MappedPool] | None = None
        if role is KVConnectorRole.SCHEDULER:
            self._scheduler_half = KvbmScheduler(
                ServiceClient(self._socket, self._attach),
                block_tokens=spec.block_tokens,
                ranks=spec.ranks,
                onboard_timeout_ms=settings.options.onboard_timeout_ms,
            )

    @property
    def requires_kv_delivery(self) -> bool:
        """A block that is not saved is only computed again."""
        return False

    def shutdown(self) -> None:
        if self._scheduler_half is not None:
            self._scheduler_half.close()
        if self._rank_half is not None:
            self._rank_half.close()

    # At a rank.

    @property
    def _rank(self) -> Rank[MappedPool]:
        assert self._rank_half is not None
        return self._rank_half

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        with refusals_left(self._settings):
            parts = cache_parts(self._kv_cache_config, kv_caches)
        spec, rank = self._attach.pool, self._attach.rank
        assert rank is not None
        part = RankPart(rank, spec.rank_bytes)

        def copier(pool: MappedPool) -> Copier:
            return _copier(parts, pool, part)

        self._rank_half = Rank(lambda: map_pool(self._socket, self._attach, _MAP_S), copier, time.monotonic)
        self._rank_half.map()

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        assert isinstance(kv_connector_metadata, KvbmStep)
        self._rank.begin(kv_connector_metadata.step)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return None, self._rank.collect() or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._rank.take_broken_blocks()

    def build_connector_worker_meta(self) -> KvbmDone | None:
        done = self._rank.take_done()
        return None if done is None else KvbmDone(done)

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        """They have begun before the step."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Who waits for a load takes part in no step."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: "AttentionMetadata", **kwargs: Any
    ) -> None:
        """Whole blocks are saved, in a later step."""

    def wait_for_save(self) -> None:
        """Who is given a block that is being saved waits for that, see Step.fences."""

    # At the scheduler.

    @property
    def _scheduler(self) -> KvbmScheduler:
        assert self._scheduler_half is not None
        return self._scheduler_half

    def get_num_new_matched_tokens(self, request: "Request", num_computed_tokens: int) -> tuple[int | None, bool]:
        found = self._scheduler.find(request, num_computed_tokens)
        return found, bool(found)

    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int) -> None:
        self._scheduler.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KvbmStep:
        return KvbmStep(self._scheduler.step(scheduler_output))

    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        meta = connector_output.kv_connector_worker_meta
        if isinstance(meta, KvbmDone):
            self._scheduler.done(meta.done)

    def request_finished(self, request: "Request", block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        self._scheduler.finished(request, block_ids)
        return False, None

    def has_pending_push_work(self) -> bool:
        """While anything is being copied, steps without requests bring it to its end."""
        return self._scheduler.busy

    def reset_cache(self) -> bool:
        """vLLM asks for this when the weights may have changed. The pool is of those that the engine began with."""
        self._scheduler.stop_serving()
        return True


def _copier(parts: list[torch.Tensor], pool: MappedPool, part: RankPart) -> Copier:
    if parts[0].device.type == "cpu":
        from dynamo.engines.vllm.kvbm_copier import cpu_copier

        return cpu_copier(parts, pool, part)
    from dynamo.engines.vllm.kvbm_cuda_copier import cuda_copier

    return cuda_copier(parts, pool, part)
