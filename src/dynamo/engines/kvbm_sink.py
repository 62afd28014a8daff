"""What routers are told of an engine's cache, and of what the block manager keeps for it."""

from dynamo.engines.base import KvEventSink
from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent, KvEventBatch, Tier
from dynamo.protocols.kvbm import StorageTier, TierChanges
from dynamo.tokens import HashArray, hash_array, hashes_from_bytes, hashes_to_bytes

PART_BLOCKS = 65536  # in an event: half a megabyte
_TIERS = {StorageTier.HOST: Tier.HOST, StorageTier.DISK: Tier.DISK}  # what lies further away, routers are not told


class TieredSink:
    """A KvEventSink around another one. All data-parallel ranks of the engine share the pool: it is told of each.

    An engine that says that its cache is empty means its own; routers take it for all tiers. So what is in the pool is
    told anew then.
    """

    def __init__(self, sink: KvEventSink, ranks: int = 1) -> None:
        """`ranks`: of data parallelism."""
        self._sink = sink
        self._ranks = range(ranks)
        self._held: dict[Tier, set[int]] = {tier: set() for tier in _TIERS.values()}

    def publish(self, batch: KvEventBatch) -> None:
        self._sink.publish(batch)
        if any(isinstance(event, AllBlocksCleared) for event in batch.events):
            for tier, held in self._held.items():
                self._tell(BlockStored, tier, hash_array(held), range(batch.dp_rank, batch.dp_rank + 1))

    def close(self) -> None:
        self._sink.close()

    def pool_changed(self, changes: TierChanges) -> None:
        """What the service says of the pool. Raises ValueError for names that are none."""
        tier = _TIERS.get(changes.tier)
        if tier is None:
            return
        stored, removed = hashes_from_bytes(changes.stored), hashes_from_bytes(changes.removed)
        held = self._held[tier]
        if changes.reset:
            removed = hash_array(held.difference(stored))
        held.difference_update(removed)
        held.update(stored)
        self._tell(BlockRemoved, tier, removed, self._ranks)
        self._tell(BlockStored, tier, stored, self._ranks)

    def pool_lost(self) -> None:
        """Nothing can be had from the pool until it is told anew. Idempotent."""
        for tier, held in self._held.items():
            self._tell(BlockRemoved, tier, hash_array(held), self._ranks)
            held.clear()

    def _tell(self, kind: type[BlockStored | BlockRemoved], tier: Tier, names: HashArray, ranks: range) -> None:
        for start in range(0, len(names), PART_BLOCKS):
            event: KvEvent = kind(hashes_to_bytes(names[start : start + PART_BLOCKS]), tier)
            for dp_rank in ranks:
                self._sink.publish(KvEventBatch(dp_rank, [event]))
