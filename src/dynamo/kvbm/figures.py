"""A pool's figures: on the wire, and as metrics."""

from collections.abc import Callable, Iterable

import msgspec

from dynamo.protocols.kvbm import PoolFigures, TierFigures
from dynamo.telemetry.kvbm_metrics import KvbmMetrics, PoolSample

READY = "ready"


def kvbm_metrics(figures: Callable[[], Iterable[PoolFigures]]) -> KvbmMetrics:
    """dynamo_kvbm_* of the pools that `figures` tells of, for a registry."""
    return KvbmMetrics(lambda: [_sample(pool) for pool in figures()])


def _sample(pool: PoolFigures) -> PoolSample:
    numbers = _numbers(pool)
    numbers["onboarded_bytes"] = pool.onboarded_blocks * pool.slot_bytes
    numbers["offloaded_bytes"] = pool.offloaded_blocks * pool.slot_bytes
    tiers = {tier.tier.value: {**_numbers(tier), "ready": float(tier.state == READY)} for tier in pool.tiers}
    return PoolSample(pool=f"{pool.description} ({pool.namespace.hex()[:8]})", figures=numbers, tiers=tiers)


def _numbers(figures: PoolFigures | TierFigures) -> dict[str, float]:
    return {name: value for name, value in msgspec.structs.asdict(figures).items() if isinstance(value, int | float)}
