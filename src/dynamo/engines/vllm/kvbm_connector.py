"""vLLM's connector to the block manager: what vLLM calls, at its scheduler and at each rank."""

import functools
import os
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
from dynamo.engines.vllm.kvbm_scheduler import KvbmScheduler
from dynamo.engines.vllm.kvbm_settings import owner_of_rank, settings_of
from dynamo.errors import ConfigError
from dynamo.kvbm.client import ServiceClient, map_pool
from dynamo.kvbm.jobs import Done, Step
from dynamo.kvbm.rank import Rank
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
    """Copies run beside the model's steps: what a step computes is saved during the next ones, and requests wait for
    loads while others run.
    """

    _cache_hit_source = CacheHitSource.HOST

    def __init__(self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig") -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        settings = settings_of(vllm_config.kv_transfer_config)
        if settings is None:
            raise ConfigError("this connector is chosen by --kvbm-host-gb")
        check_cache(kv_cache_config)
        parallel = vllm_config.parallel_config
        spec = pool_spec(vllm_config, kv_cache_config, settings)
        self._socket = Path(settings.socket)
        self._attach = Attach(
            version=KVBM_VERSION,
            owner=owner_of_rank(settings.owner, parallel.data_parallel_index),
            pool=spec,
            options=settings.options,
            rank=None if role is KVConnectorRole.SCHEDULER else parallel.rank,
        )
        self._scheduler: KvbmScheduler | None = None
        self._ranks: Rank[Any] | None = None
        if role is KVConnectorRole.SCHEDULER:
            self._scheduler = KvbmScheduler(
                ServiceClient(self._socket, self._attach),
                block_tokens=spec.block_tokens,
                ranks=spec.ranks,
                onboard_timeout_ms=settings.options.onboard_timeout_ms,
            )

    @property
    def requires_kv_delivery(self) -> bool:
        """A block that is not saved is only computed again."""
        return False

    # At the ranks.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        parts = cache_parts(self._kv_cache_config, kv_caches)
        rank_bytes = self._attach.pool.rank_bytes
        place = functools.partial(RankSlots, rank=self._attach.rank, rank_bytes=rank_bytes)
        if parts[0].device.type == "cpu":
            from dynamo.engines.vllm.kvbm_copier import cpu_copier as make
        else:
            from dynamo.engines.vllm.kvbm_cuda_copier import cuda_copier as make
        self._rank = Rank(lambda: map_pool(self._socket, self._attach, _MAP_S), make)
        self._rank.map()
