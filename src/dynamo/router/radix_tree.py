"""Which worker holds which prefixes. Pure.

`RadixTree` is upstream's name. The tree is in the hashes: a sequence hash names a block and all that precedes it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from dynamo.protocols.generation import WorkerId
from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent, Tier
from dynamo.router.block_index import BlockIndex, Hashes, SlotMatch
from dynamo.router.kernel import make_block_index
from dynamo.router.retired_slots import RetiredSlots
from dynamo.tokens import HASH_SEED, HashArray, TokenArray, hash_array

MAX_BLOCKS = 8_388_608


class Overlap(NamedTuple):
    """How many blocks of a prompt, from the first on, a worker holds, by the fastest tier that has them."""

    device: int = 0
    host: int = 0
    disk: int = 0

    @property
    def total(self) -> int:
        return self.device + self.host + self.disk


NO_OVERLAP = Overlap()


@dataclass(frozen=True, slots=True)
class OverlapScores:
    """The workers that hold the beginning of a prompt."""

    overlaps: dict[WorkerId, Overlap] = field(default_factory=dict)  # workers without any are left out

    @property
    def scores(self) -> dict[WorkerId, int]:
        """Blocks on any tier."""
        return {worker: overlap.total for worker, overlap in self.overlaps.items()}


class RadixTree:
    """Holds at most `max_blocks` different blocks; those that were stored or asked for longest ago make room.

    A worker's whole state can be replaced at once however large it is: the new one is drafted a part at a time, while
    the former one goes on answering. What many blocks leave behind is cleared away with what changes after that.
    """

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._index: BlockIndex = make_block_index(max_blocks)
        self._slots: dict[WorkerId, int] = {}
        self._drafts: dict[WorkerId, int] = {}  # second slots, which nobody finds
        self._retired = RetiredSlots(self._index)  # nor these
        self._workers: list[WorkerId] = []  # by slot; of a free or retired one, who had it last
        self._free: list[int] = []

    def __len__(self) -> int:
        """Different blocks, those in drafts and those still to be cleared away included."""
        return len(self._index)

    @property
    def pruned(self) -> int:
        """Blocks that had to make room since the start."""
        return self._index.pruned

    def workers(self) -> list[WorkerId]:
        """Those that hold, or have held, anything."""
        return list(self._slots)

    def apply(self, worker: WorkerId, event: KvEvent) -> None:
        """Raises ValueError for an event whose hashes are no hashes."""
        if isinstance(event, BlockStored):
            self.store(worker, event.hashes, event.tier)
        elif isinstance(event, BlockRemoved):
            self.remove(worker, event.hashes, event.tier)
        else:
            assert isinstance(event, AllBlocksCleared)
            self.clear(worker)

    def store(self, worker: WorkerId, hashes: Hashes, tier: Tier = Tier.DEVICE) -> None:
        """`worker` holds these blocks; known ones are no mistake."""
        self._store(self._slots, worker, hashes, tier)

    def remove(self, worker: WorkerId, hashes: Hashes, tier: Tier = Tier.DEVICE) -> None:
        """`worker` holds them no longer; unknown ones are no mistake."""
        slot = self._slots.get(worker)
        if slot is not None:
            self._index.remove(slot, tier, hashes)
        self.clear_portion()

    def clear(self, worker: WorkerId) -> None:
        """`worker` holds nothing any more."""
        slot = self._slots.get(worker)
        if slot is not None:
            self._slots[worker] = self._take_slot(worker)
            self._retired.add(slot)
        self.clear_portion()

    def remove_worker(self, worker: WorkerId) -> None:
        """`worker` is gone, and with it what was drafted for it."""
        self.drop_draft(worker)
        self.adopt(worker)
        self.clear_portion()

    def draft(self, worker: WorkerId, hashes: Hashes, tier: Tier = Tier.DEVICE) -> None:
        """`worker` will hold these blocks as well, when adopt() says so; until then nobody finds them with it."""
        self._store(self._drafts, worker, hashes, tier)

    def adopt(self, worker: WorkerId) -> None:
        """What was drafted is all that `worker` holds; without a draft it is as if it were gone."""
        former, draft = self._slots.pop(worker, None), self._drafts.pop(worker, None)
        if draft is not None:
            self._slots[worker] = draft
        if former is not None:
            self._retired.add(former)

    def drop_draft(self, worker: WorkerId) -> None:
        """Nothing comes of what was drafted."""
        slot = self._drafts.pop(worker, None)
        if slot is not None:
            self._retired.add(slot)

    def clear_portion(self) -> None:
        """Clears away some of what nobody finds any more. All changes do so too but adopt() and drop_draft(), of which
        many may come at once: it is to be called after them.
        """
        if self._retired:
            self._free += self._retired.clear_portion()

    def find_matches(self, hashes: HashArray) -> OverlapScores:
        """Who holds how many of these consecutive blocks. What is found counts as used."""
        return self._scores(self._index.match(hashes))

    def hash_and_match(
        self, token_ids: TokenArray, block_size: int, seed: int = HASH_SEED
    ) -> tuple[HashArray, OverlapScores]:
        """The sequence hashes of a prompt, and who holds how many of its blocks."""
        hashes, matches = self._index.hash_and_match(token_ids, block_size, seed)
        return hashes, self._scores(matches)

    def held(self, worker: WorkerId, tier: Tier = Tier.DEVICE) -> HashArray:
        """The blocks that `worker` holds on `tier`, in no particular order."""
        slot = self._slots.get(worker)
        return hash_array() if slot is None else self._index.held(slot, tier)

    def dump(self) -> Iterable[tuple[WorkerId, Tier, HashArray]]:
        """All that is known, worker by worker."""
        for worker, slot in self._slots.items():
            for tier in Tier:
                hashes = self._index.held(slot, tier)
                if hashes:
                    yield worker, tier, hashes

    def _scores(self, matches: Iterable[SlotMatch]) -> OverlapScores:
        workers = self._workers
        if self._drafts or self._retired:
            slots = self._slots
            matches = [match for match in matches if slots.get(workers[match[0]]) == match[0]]
        overlaps: dict[WorkerId, Overlap] = {}
        overlap = NO_OVERLAP
        for slot, device, host, disk in matches:
            # Many have the same, one after the other: making it anew for each takes twice as long.
            if device != overlap[0] or host != overlap[1] or disk != overlap[2]:
                overlap = Overlap(device, host, disk)
            overlaps[workers[slot]] = overlap
        return OverlapScores(overlaps)

    def _store(self, slots: dict[WorkerId, int], worker: WorkerId, hashes: Hashes, tier: Tier) -> None:
        slot = slots.get(worker)
        if slot is None:
            slot = slots[worker] = self._take_slot(worker)
        self._index.store(slot, tier, hashes)
        self.clear_portion()

    def _take_slot(self, worker: WorkerId) -> int:
        if self._free:
            slot = self._free.pop()
            self._workers[slot] = worker
            return slot
        self._workers.append(worker)
        return len(self._workers) - 1
