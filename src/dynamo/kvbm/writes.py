"""Blocks on their way down: the queue, and what is under way."""

from collections import OrderedDict
from collections.abc import Mapping

from dynamo.kvbm.block import Block
from dynamo.kvbm.counters import PoolCounters
from dynamo.kvbm.effects import Effect, Forget, Write
from dynamo.kvbm.pool import HostPool
from dynamo.kvbm.storage.base import Copy, Stored
from dynamo.kvbm.tier import LowerTier
from dynamo.protocols.kvbm import StorageTier


class Offloading:
    """Writes host blocks to the tiers below, `writes_max` at a time; the rest waits in a queue for each tier.

    A block that waits may leave host memory before its turn comes: it is dropped, and counted.
    """

    def __init__(
        self,
        pool: HostPool,
        tiers: Mapping[StorageTier, LowerTier],
        counters: PoolCounters,
        effects: list[Effect],
        *,
        writes_max: int,
        queue_max: int,
    ) -> None:
        self._pool = pool
        self._tiers = [tier for tier in tiers.values() if tier.takes_writes]
        self._counters = counters
        self._effects = effects
        self._writes_max = writes_max
        self._queue_max = queue_max
        self._queues: dict[StorageTier, OrderedDict[bytes, None]] = {tier.tier: OrderedDict() for tier in self._tiers}
        self._under_way: dict[tuple[StorageTier, bytes], tuple[Block, int]] = {}  # and how many were with it

    @property
    def under_way(self) -> int:
        """Copies that have not ended yet."""
        return len(self._under_way)

    def queued(self, tier: StorageTier) -> int:
        """Blocks that wait for their turn."""
        return len(self._queues.get(tier, ()))

    def wanting(self, key: bytes) -> bool:
        """Whether some tier could have this block and does not."""
        for tier in self._tiers:
            if tier.is_ready and tier.books.wants(key) and key not in self._queues[tier.tier]:
                return True
        return False

    def offer(self, key: bytes) -> None:
        """A registered block is worth writing, to every tier that wants it."""
        for tier in self._tiers:
            queue = self._queues[tier.tier]
            if tier.is_ready and tier.books.wants(key) and key not in queue:
                queue[key] = None
                if len(queue) > self._queue_max:
                    queue.popitem(last=False)
                    self._counters.dropped_writes += 1

    def left(self, key: bytes) -> None:
        """A block is not in host memory any more: it cannot be written."""
        for queue in self._queues.values():
            if key in queue:
                del queue[key]
                self._counters.dropped_writes += 1

    def write_now(self, block: Block, now_s: float) -> bool:
        """Begins to write a block to every tier that wants it and takes any now; whether one does."""
        begun = False
        for tier in self._tiers:
            if self.under_way < self._writes_max and self._may_begin(tier, now_s) and tier.books.wants(block.key):
                begun |= self._begin(tier, block)
        return begun

    def pump(self, at_most: int, now_s: float) -> None:
        """Begins to write what waits, until so many are under way."""
        at_most = min(at_most, self._writes_max)
        for tier in self._tiers:
            queue = self._queues[tier.tier]
            while queue and self.under_way < at_most and self._may_begin(tier, now_s):
                key = queue.popitem(last=False)[0]
                if tier.books.wants(key) and not self._begin(tier, self._pool.registered[key]):
                    self._counters.dropped_writes += 1  # every place is busy: the tier is tiny

    def retry_at_s(self) -> float | None:
        """When a tier that has failed is to be tried again with what waits for it."""
        times = [tier.writes.retry_at_s for tier in self._tiers if self._queues[tier.tier] and tier.is_ready]
        return min((time for time in times if time is not None), default=None)

    def written(self, tier: LowerTier, stored: Stored, seconds: float) -> Block:
        """A copy has ended well. Returns the block, whose slot it does not need any more."""
        block, beside = self._under_way.pop((tier.tier, stored.key))
        block.writes -= 1
        tier.writes.took(seconds, max(beside, self.under_way + 1))
        tier.counters.write_s += seconds
        if tier.books.end_write(stored.key, good=True):
            tier.counters.stored_blocks += 1
            tier.name_added(stored.name)
        else:
            self._effects.append(Forget(tier.tier, stored))
        return block

    def failed(self, tier: LowerTier, key: bytes, now_s: float) -> Block:
        """A copy has ended in an error."""
        block, _ = self._under_way.pop((tier.tier, key))
        block.writes -= 1
        tier.books.end_write(key, good=False)
        tier.writes.failed(now_s)
        tier.counters.errors += 1
        return block

    def lost(self, tier: StorageTier) -> None:
        """Nothing waits for this tier any more."""
        if tier in self._queues:
            self._counters.dropped_writes += len(self._queues[tier])
            self._queues[tier].clear()

    def _may_begin(self, tier: LowerTier, now_s: float) -> bool:
        if not tier.is_ready or tier.writes.is_paused(now_s):
            return False
        return not tier.writes.has_failed or not any(of is tier.tier for of, _ in self._under_way)

    def _begin(self, tier: LowerTier, block: Block) -> bool:
        begun = tier.books.begin_write(block.key, block.name)
        if begun is None:
            return False
        stored, evicted = begun
        if evicted is not None:
            self._forget(tier, evicted)
        block.writes += 1
        self._under_way[tier.tier, block.key] = (block, self.under_way + 1)
        self._effects.append(Write(tier.tier, Copy(block.index, stored)))
        return True

    def _forget(self, tier: LowerTier, evicted: Stored) -> None:
        tier.counters.evicted_blocks += 1
        tier.name_removed(evicted.name)
        self._effects.append(Forget(tier.tier, evicted))
