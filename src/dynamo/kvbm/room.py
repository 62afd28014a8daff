"""Room in host memory: evicts what is worth least, and writes it down first where that is asked for."""

from collections.abc import Mapping

from dynamo.kvbm.block import Block, BlockState
from dynamo.kvbm.changes import NameChanges
from dynamo.kvbm.counters import PoolCounters, TierCounters
from dynamo.kvbm.offload import OffloadFilter
from dynamo.kvbm.pool import HostPool
from dynamo.kvbm.tier import LowerTier
from dynamo.kvbm.writes import Offloading
from dynamo.protocols.kvbm import StorageTier


class Room:
    """Finds slots. With `on_evict`, a block that passes the filter keeps its slot until it has been written."""

    def __init__(
        self,
        pool: HostPool,
        tiers: Mapping[StorageTier, LowerTier],
        offloading: Offloading,
        offload_filter: OffloadFilter,
        names: NameChanges,
        counters: PoolCounters,
        *,
        on_evict: bool,
    ) -> None:
        self._pool = pool
        self._known = [tier.books for tier in tiers.values() if tier.is_known]
        self._offloading = offloading
        self._filter = offload_filter
        self._names = names
        self._counters = counters
        self._host: TierCounters = counters.tiers[StorageTier.HOST]
        self._on_evict = on_evict

    def take(self, now_s: float) -> Block | None:
        """A slot at once, for who waits for it: what makes room is not written. None if nothing can go."""
        while not self._pool.free:
            block = self._pool.victim()
            if block is None:
                return None
            if block.writes:  # somebody reads it
                self._pool.leave(block)
                continue
            if self._is_worth_writing(block, now_s):
                self._counters.dropped_writes += 1
            self.evict(block)
        return self._pool.take()

    def make(self, wanted: int, now_s: float) -> None:
        """So many slots are to be free soon, as far as that can be had."""
        while self._pool.free + self._pool.leaving < wanted:
            block = self._pool.victim()
            if block is None:
                return
            if block.writes:
                self._pool.leave(block)
            elif not self._is_worth_writing(block, now_s):
                self.evict(block)
            elif self._offloading.write_now(block, now_s):
                self._pool.leave(block)
            else:
                self._counters.dropped_writes += 1
                self.evict(block)

    def evict(self, block: Block) -> None:
        """A block leaves host memory."""
        self._host.evicted_blocks += 1
        self.remove(block)

    def remove(self, block: Block) -> None:
        """It is not found any more, for whatever reason."""
        key = block.key
        self._names.remove(block.name)
        self._offloading.left(key)
        for books in self._known:
            books.touch(key)  # from now on it is found there only
        self._pool.unregister(block)

    def copied(self, block: Block) -> None:
        """A copy down has ended: the block's slot may be free with that."""
        if block.writes:
            return
        if block.state is BlockState.REGISTERED and block.leaving:
            self.evict(block)
        else:
            self._pool.settle(block)

    def _is_worth_writing(self, block: Block, now_s: float) -> bool:
        return self._on_evict and self._offloading.wanting(block.key) and self._filter.admits(block.key, now_s)
