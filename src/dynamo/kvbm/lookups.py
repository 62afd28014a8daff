"""What was looked up, and how far it has come."""

from dataclasses import dataclass, field

from dynamo.kvbm.block import Block, BlockState
from dynamo.kvbm.storage.base import Stored
from dynamo.protocols.kvbm import StorageTier

TIER_ORDER = (StorageTier.HOST, StorageTier.DISK, StorageTier.OBJECT, StorageTier.PEER)
TIER_INDEX = {tier: index for index, tier in enumerate(TIER_ORDER)}


@dataclass(slots=True, kw_only=True, eq=False)
class Lookup:
    """A run of blocks, from the first on.

    `blocks` are pinned: the first `ready` of them can be read, the others are being fetched. The keys from there up to
    `known` are to be had below and wait for their turn. What comes behind is being asked for, or a miss.
    """

    session: int
    id: int
    keys: tuple[bytes, ...]
    deadline_s: float
    is_counted: bool = True  # as hits and misses; not what peers ask: those are of our engines
    blocks: list[Block] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)  # of `blocks`, as indexes in TIER_ORDER
    sources: list[StorageTier] = field(default_factory=list)  # of the keys up to `known`
    ready: int = 0
    counts: list[int] = field(default_factory=lambda: [0, 0, 0, 0])  # of the ready ones, by origin
    kept: list[Block] = field(default_factory=list)  # pinned so that they are there when it is their turn
    to_ask: list[StorageTier] = field(default_factory=list)  # tiers without books, the next one last
    asked: dict[StorageTier, int] = field(default_factory=dict)  # of those: for how many blocks
    is_complete: bool = False  # nothing is to be had after `known`
    is_late: bool = False  # there was more than it had time for
    asking: int | None = None  # the number of the question that is open

    @property
    def known(self) -> int:
        """How many blocks, from the first on, are there or are to be had."""
        return len(self.sources)

    @property
    def coming(self) -> int:
        """How many of the next are under way; of those that a tier is being asked for it is not known yet."""
        return (self.known if self.asking is None else len(self.keys)) - self.ready

    def start(self, blocks: list[Block]) -> None:
        """The first blocks, pinned, all in host memory."""
        self.blocks = blocks
        self.ready = self.counts[0] = len(blocks)
        self.origins = [0] * self.ready
        self.sources = [StorageTier.HOST] * self.ready

    def take(self, block: Block, origin: int) -> None:
        """The next block, pinned."""
        self.blocks.append(block)
        self.origins.append(origin)

    def advance(self) -> None:
        """Counts the blocks that can be read by now."""
        while self.ready < len(self.blocks) and self.blocks[self.ready].state is not BlockState.PARTIAL:
            self.counts[self.origins[self.ready]] += 1
            self.ready += 1

    def cut(self, end: int) -> list[Block]:
        """It ends after so many blocks, of which it has all that are ready. Returns those to unpin."""
        surplus = self.blocks[end:]
        del self.blocks[end:], self.origins[end:], self.sources[end:]
        self.is_complete = True
        return surplus


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A tier is being asked how many of a lookup's next blocks it has."""

    lookup: Lookup
    tier: StorageTier
    asked_at_s: float


@dataclass(slots=True, kw_only=True, eq=False)
class Arrival:
    """A block that is being fetched, and who waits for it: lookups, and at which of their blocks."""

    block: Block
    tier: StorageTier
    stored: Stored
    begun_s: float
    beside: int  # blocks under way when it began, itself included
    waiting: list[tuple[Lookup, int]] = field(default_factory=list)
    is_wanted: bool = True  # not if host memory was cleared since
