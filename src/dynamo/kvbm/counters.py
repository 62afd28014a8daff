"""What a pool has done so far, as counters."""

from dataclasses import dataclass, field

from dynamo.protocols.kvbm import StorageTier


@dataclass(slots=True, kw_only=True)
class TierCounters:
    """Of one tier; as dynamo.protocols.kvbm.TierFigures has them."""

    hits: int = 0
    misses: int = 0  # also of blocks that it was not asked for, because it is too slow or not there
    stored_blocks: int = 0
    fetched_blocks: int = 0
    evicted_blocks: int = 0
    write_s: float = 0.0  # sum over blocks of the time each was under way
    read_s: float = 0.0
    checksum_failures: int = 0
    errors: int = 0


@dataclass(slots=True, kw_only=True)
class PoolCounters:
    """Of all tiers."""

    tiers: dict[StorageTier, TierCounters] = field(default_factory=dict)
    lookups: int = 0
    late_lookups: int = 0
    dropped_writes: int = 0  # blocks that were to go down and left host memory, or the queue, before
