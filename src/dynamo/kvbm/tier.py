"""A tier below host memory, as the manager sees it."""

from dataclasses import dataclass

from dynamo.kvbm.admission import TierCost
from dynamo.kvbm.books import TierBooks
from dynamo.kvbm.changes import NameChanges
from dynamo.kvbm.counters import TierCounters
from dynamo.kvbm.eviction import eviction_policy
from dynamo.kvbm.sketch import FrequencySketch
from dynamo.protocols.kvbm import StorageTier


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSpec:
    """A tier below the host."""

    tier: StorageTier
    capacity: int | None  # blocks; None: no places (object, peer)


class LowerTier:
    """Its books, what it costs, and whether it is in use."""

    def __init__(self, spec: TierSpec, policy: str, sketch: FrequencySketch) -> None:
        self.tier = spec.tier
        self.books = TierBooks(spec.capacity, eviction_policy(policy, sketch, spec.capacity or 0))
        self.reads, self.finds, self.writes = TierCost(), TierCost(), TierCost()
        self.counters = TierCounters()
        self.state = "opening"
        self.is_ready = False
        self.names = NameChanges(spec.tier) if spec.tier is StorageTier.DISK else None  # of others nobody is told
        self.takes_writes = spec.tier is not StorageTier.PEER

    @property
    def is_known(self) -> bool:
        """Whether the books say all there is; otherwise it has to be asked."""
        return self.books.capacity is not None

    def opened(self) -> None:
        """It can be used: what it was before says nothing."""
        self.state, self.is_ready = "ready", True
        for cost in (self.reads, self.finds, self.writes):
            cost.recovered()

    def lost(self) -> None:
        """It cannot be used."""
        self.state, self.is_ready = "lost", False

    def name_added(self, name: int) -> None:
        """A block of this name is in its books now."""
        if self.names is not None:
            self.names.add(name)

    def name_removed(self, name: int) -> None:
        """A block of this name has left its books."""
        if self.names is not None:
            self.names.remove(name)
