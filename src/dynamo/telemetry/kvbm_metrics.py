"""dynamo_kvbm_*: the block manager's pools and their tiers, as its service and the workers that use it show them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_PREFIX = "dynamo_kvbm_"
_POOL_LABELS = ("pool",)
_TIER_LABELS = ("pool", "tier")

# Name without the prefix, and what it says, by the field of a pool's or a tier's figures.
_POOL_GAUGES = {
    "engines": ("engines", "Engines that use the pool"),
    "held_slots": ("held_slots", "Slots of host memory that somebody fills or reads"),
}
_POOL_COUNTERS = {
    "lookups": ("lookups", "Prompts whose blocks were looked up"),
    "late_lookups": ("late_lookups", "Lookups answered with less than there is, for want of time"),
    "onboarded_blocks": ("onboarded_blocks", "Blocks copied from host memory to engines"),
    "onboarded_bytes": ("onboarded_bytes", "Bytes of those"),
    "onboard_s": ("onboard_seconds", "What those copies took"),
    "offloaded_blocks": ("offloaded_blocks", "Blocks copied from engines to host memory"),
    "offloaded_bytes": ("offloaded_bytes", "Bytes of those"),
    "offload_s": ("offload_seconds", "What those copies took"),
    "dropped_offloads": ("dropped_offloads", "Blocks that were not kept, because there was no slot for them in time"),
    "dropped_writes": ("dropped_writes", "Blocks that were to go further down, and left host memory before"),
}
_TIER_GAUGES = {
    "blocks": ("blocks", "Blocks that the tier holds"),
    "used_bytes": ("used_bytes", "Bytes of those"),
    "capacity_bytes": ("capacity_bytes", "What it can hold; 0: without limit, or not known"),
    "queued": ("queued_blocks", "Blocks that wait to be copied to it or from it"),
    "ready": ("tier_ready", "1 while the tier is used, 0 while it is opened or in trouble"),
}
_TIER_COUNTERS = {
    "hits": ("hits", "Blocks looked up and found in this tier"),
    "misses": ("misses", "Blocks looked up and not found in it"),
    "stored_blocks": ("stored_blocks", "Blocks that have come to it"),
    "fetched_blocks": ("fetched_blocks", "Blocks read from it into host memory"),
    "evicted_blocks": ("evicted_blocks", "Blocks that left it to make room"),
    "written_bytes": ("written_bytes", "Bytes written to it"),
    "read_bytes": ("read_bytes", "Bytes read from it"),
    "write_s": ("write_seconds", "How long blocks were under way to it, summed over blocks"),
    "read_s": ("read_seconds", "How long blocks were under way from it, summed over blocks"),
    "checksum_failures": ("checksum_failures", "Blocks that were not what had been written; none was served"),
    "errors": ("errors", "Blocks whose copy failed"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSample:
    """What one pool's figures are now, by field; those of a tier by the tier's name."""

    pool: str
    figures: Mapping[str, float]
    tiers: Mapping[str, Mapping[str, float]]


class KvbmMetrics(Collector):
    """Of all pools that `samples` tells of when it is asked."""

    def __init__(self, samples: Callable[[], Iterable[PoolSample]]) -> None:
        self._samples = samples

    def collect(self) -> Iterable[Metric]:
        samples = list(self._samples())
        pools = [((sample.pool,), sample.figures) for sample in samples]
        tiers = [((sample.pool, tier), figures) for sample in samples for tier, figures in sample.tiers.items()]
        for fields, labels, series in ((_POOL_GAUGES, _POOL_LABELS, pools), (_TIER_GAUGES, _TIER_LABELS, tiers)):
            for field, (name, text) in fields.items():
                gauge = GaugeMetricFamily(_PREFIX + name, text, labels=labels)
                for values, figures in series:
                    gauge.add_metric(values, figures[field])
                yield gauge
        for fields, labels, series in ((_POOL_COUNTERS, _POOL_LABELS, pools), (_TIER_COUNTERS, _TIER_LABELS, tiers)):
            for field, (name, text) in fields.items():
                counter = CounterMetricFamily(_PREFIX + name, text, labels=labels)
                for values, figures in series:
                    counter.add_metric(values, figures[field])
                yield counter
