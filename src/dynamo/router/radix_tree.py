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

    def of(self, worker: WorkerId) -> Overlap:
        return self.overlaps.get(worker, NO_OVERLAP)


class RadixTree:
    """Holds at most `max_blocks` different blocks; those that were stored or asked for longest ago make room."""

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._index: BlockIndex = make_block_index(max_blocks)
        self._slots: dict[WorkerId, int] = {}
        self._workers: list[WorkerId] = []  # by slot; of a free one, who had it last
        self._free: list[int] = []

    def __len__(self) -> int:
        """Different blocks."""
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
        slot = self._slots.get(worker)
        if slot is None:
            slot = self._take_slot(worker)
        self._index.store(slot, tier, hashes)

    def remove(self, worker: WorkerId, hashes: Hashes, tier: Tier = Tier.DEVICE) -> None:
        """`worker` holds them no longer; unknown ones are no mistake."""
        slot = self._slots.get(worker)
        if slot is not None:
            self._index.remove(slot, tier, hashes)

    def clear(self, worker: WorkerId) -> None:
        """`worker` holds nothing any more."""
        slot = self._slots.get(worker)
        if slot is not None:
            self._index.clear(slot)

    def remove_worker(self, worker: WorkerId) -> None:
        """`worker` is gone."""
        slot = self._slots.pop(worker, None)
        if slot is not None:
            self._index.clear(slot)
            self._free.append(slot)

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
        overlaps: dict[WorkerId, Overlap] = {}
        overlap = NO_OVERLAP
        for slot, device, host, disk in matches:
            # Many have the same, one after the other: making it anew for each takes twice as long.
            if device != overlap[0] or host != overlap[1] or disk != overlap[2]:
                overlap = Overlap(device, host, disk)
            overlaps[workers[slot]] = overlap
        return OverlapScores(overlaps)

    def _take_slot(self, worker: WorkerId) -> int:
        if self._free:
            slot = self._free.pop()
            self._workers[slot] = worker
        else:
            slot = len(self._workers)
            self._workers.append(worker)
        self._slots[worker] = slot
        return slot
