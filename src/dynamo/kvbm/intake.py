"""What happens to a block that has come to host memory, and to one that is used there."""

from dynamo.kvbm.block import Block
from dynamo.kvbm.changes import NameChanges
from dynamo.kvbm.offload import OffloadFilter
from dynamo.kvbm.pool import HostPool
from dynamo.kvbm.writes import Offloading


class Intake:
    """Registers blocks, and offers them to the tiers below when the filter says so (`on_evict`: not yet)."""

    def __init__(
        self,
        pool: HostPool,
        names: NameChanges,
        offloading: Offloading,
        offload_filter: OffloadFilter,
        *,
        on_evict: bool,
    ) -> None:
        self._pool = pool
        self._names = names
        self._offloading = offloading
        self._filter = offload_filter
        self._on_evict = on_evict

    def register(self, block: Block, now_s: float) -> None:
        """A filled slot whose key is new: everybody can find it from now on."""
        self._pool.register(block)
        self._names.add(block.name)
        self.used(block.key, now_s)

    def used(self, key: bytes, now_s: float) -> None:
        """A registered block was asked for, or stored, once more."""
        if self._offloading.wanting(key) and self._filter.seen(key, now_s) and not self._on_evict:
            self._offloading.offer(key)
