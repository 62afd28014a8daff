"""Which router a simulation has."""

import dataclasses
import random
from enum import StrEnum

from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.router.config import KvRouterConfig
from dynamo.router.routing import WorkerLimits
from dynamo.router.selection import RouterMode, make_selector
from dynamo.simulator.kv_core import KvCore
from dynamo.simulator.router_core import RouterCore, SelectorCore


class SimulatedMode(StrEnum):
    """The routers that can be compared."""

    ROUND_ROBIN = "round-robin"
    RANDOM = "random"
    LEAST_LOADED = "least-loaded"
    KV_APPROX = "kv-approx"  # kv without events from the workers
    KV = "kv"

    @property
    def is_kv(self) -> bool:
        return self in (SimulatedMode.KV, SimulatedMode.KV_APPROX)

    def kv_config(self, config: KvRouterConfig) -> KvRouterConfig:
        """`config` as it is for this mode, which is_kv."""
        return dataclasses.replace(config, use_kv_events=False) if self is SimulatedMode.KV_APPROX else config


def make_router_core(
    mode: SimulatedMode, config: KvRouterConfig, engine: SchedulerConfig, workers: int, rng: random.Random
) -> RouterCore:
    """A router of this mode for workers like `engine`, numbered from 0."""
    if not mode.is_kv:
        return SelectorCore(make_selector(RouterMode(mode.value), rng), workers)
    limits = WorkerLimits(max_num_batched_tokens=engine.max_num_batched_tokens)
    return KvCore(mode.kv_config(config), engine.block_size, workers, limits, rng)
