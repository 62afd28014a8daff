"""What is copied out of an engine's cache, and who has to wait for that. Pure.

A block that is being copied may be given to another request, which writes into it: that step waits for the copy (it is
fenced). The blocks that a request leaves behind are saved as long as nobody has been given them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dynamo.kvbm.jobs import Save
from dynamo.kvbm.known_keys import KnownKeys
from dynamo.tokens import hash_array, hashes_to_bytes

BLOCKS_PER_JOB = 16  # so that a fence, or a load behind it, waits for no more than a few blocks


class SlotSource(Protocol):
    """dynamo.kvbm.client.ServiceClient, as far as it is used here."""

    @property
    def connected(self) -> bool: ...

    @property
    def generation(self) -> int: ...

    @property
    def granted(self) -> int: ...

    @property
    def pool(self) -> str: ...

    def take_slots(self, count: int) -> list[int]: ...

    def commit(self, slots: list[int], keys: bytes, names: bytes) -> None: ...

    def discard(self, slots: list[int]) -> None: ...


class BlockSequence(Protocol):
    """The full blocks of a request. Their keys stay what they are; more come as it generates."""

    @property
    def request_id(self) -> str: ...

    def keys(self, start: int, end: int) -> Sequence[bytes]: ...

    def names(self, start: int, end: int) -> Sequence[int]:
        """As routers know them; 0 for what they do not."""
        ...


@dataclass(frozen=True, slots=True)
class _Block:
    block: int
    key: bytes
    name: int


@dataclass(slots=True)
class _Job:
    save: Save
    blocks: list[_Block]
    generation: int
    ranks: int = 0
    failed: bool = False
    seconds: float = 0.0


@dataclass(slots=True)
class SaveFigures:
    """Since they were last taken."""

    blocks: int = 0
    seconds: float = 0.0
    dropped: int = 0


class Saves:
    """Of one engine."""

    def __init__(self, slots: SlotSource, known: KnownKeys, ranks: int) -> None:
        self._slots = slots
        self._known = known
        self._ranks = ranks
        self._begun: dict[str, int] = {}  # by request: how many blocks, from the first on, are dealt with
        self._left: dict[int, _Block] = {}  # nobody's, and not saved yet
        self._new: list[tuple[_Block, int]] = []  # with their slots, for the next jobs
        self._jobs: dict[int, _Job] = {}
        self._read_by: dict[int, int] = {}  # blocks that are being copied: the job
        self._figures = SaveFigures()

    @property
    def busy(self) -> bool:
        """Whether a step of the engine would get on with it."""
        return bool(self._jobs) or (bool(self._left) and self._slots.connected and self._slots.granted > 0)

    def save(self, sequence: BlockSequence, computed: int, blocks: Callable[[], Sequence[int]]) -> None:
        """Begins with those of the request's first `computed` blocks that are not in the pool, as far as slots go."""
        begun = self._begun.get(sequence.request_id, 0)
        if computed <= begun or not self._slots.granted:
            return
        candidates = self._candidates(sequence, begun, computed, blocks())
        slots = self._slots.take_slots(len(candidates))
        for (_, block), slot in zip(candidates, slots, strict=False):
            self._begin(block, slot)
        rest = candidates[len(slots) :]
        self._begun[sequence.request_id] = rest[0][0] if rest else computed  # what has no slot yet is tried again

    def leave(self, sequence: BlockSequence, computed: int, blocks: Sequence[int]) -> None:
        """The request is at its end: what is not saved of it is, until its blocks are given to others."""
        begun = self._begun.pop(sequence.request_id, 0)
        if self._slots.connected:
            for _, block in self._candidates(sequence, begun, computed, blocks):
                self._left[block.block] = block

    def forget(self, request_id: str) -> None:
        """The request is at its end, and its blocks hold nothing."""
        self._begun.pop(request_id, None)

    def forget_left(self) -> None:
        """What requests have left behind may be overwritten from now on without a word."""
        self._figures.dropped += len(self._left)
        self._left.clear()

    def save_left(self, given: set[int]) -> None:
        """Begins with what is left, as far as slots go. Blocks in `given` are lost after this step."""
        if not self._left:
            return
        wanted = [block for block in self._left.values() if block.key not in self._known]
        slots = self._slots.take_slots(len(wanted))
        for block, slot in zip(wanted, slots, strict=False):
            self._begin(block, slot)
        self._left = {block.block: block for block in wanted[len(slots) :] if block.block not in given}
        self._figures.dropped += len(wanted) - len(slots) - len(self._left)

    def take_jobs(self, take_id: Callable[[], int]) -> tuple[Save, ...]:
        """What was begun since the last time."""
        saves = []
        for at in range(0, len(self._new), BLOCKS_PER_JOB):
            part = self._new[at : at + BLOCKS_PER_JOB]
            blocks = [block for block, _ in part]
            numbers = tuple(block.block for block in blocks)
            save = Save(take_id(), self._slots.pool, numbers, tuple(slot for _, slot in part))
            self._jobs[save.id] = _Job(save, blocks, self._slots.generation)
            self._read_by.update(dict.fromkeys(numbers, save.id))
            saves.append(save)
        self._new.clear()
        return tuple(saves)

    def fences(self, given: set[int]) -> tuple[int, ...]:
        """The jobs that read blocks of `given`."""
        if not self._read_by:
            return ()
        return tuple(sorted({self._read_by[block] for block in given if block in self._read_by}))

    def done(self, job_id: int, ranks: int, failed: bool, seconds: float) -> None:
        """So many ranks have done their part."""
        job = self._jobs.get(job_id)
        if job is None:
            return
        job.ranks += ranks
        job.failed |= failed
        job.seconds = max(job.seconds, seconds)
        if job.ranks >= self._ranks:
            del self._jobs[job_id]
            self._finish(job)

    def take_figures(self) -> SaveFigures:
        figures, self._figures = self._figures, SaveFigures()
        return figures

    def _candidates(
        self, sequence: BlockSequence, start: int, end: int, blocks: Sequence[int]
    ) -> list[tuple[int, _Block]]:
        """With their places in the request."""
        if start >= end:
            return []
        keys, names = sequence.keys(start, end), sequence.names(start, end)
        every = zip(range(start, end), blocks[start:end], keys, names, strict=True)
        return [(at, _Block(block, key, name)) for at, block, key, name in every if key not in self._known]

    def _begin(self, block: _Block, slot: int) -> None:
        self._known.add([block.key])
        self._new.append((block, slot))

    def _finish(self, job: _Job) -> None:
        for block in job.blocks:
            if self._read_by.get(block.block) == job.save.id:
                del self._read_by[block.block]
        if job.failed:
            for block in job.blocks:
                self._known.discard(block.key)
            self._figures.dropped += len(job.blocks)
        else:
            self._figures.blocks += len(job.blocks)
            self._figures.seconds += job.seconds
        if job.generation != self._slots.generation or not self._slots.connected:
            return
        slots = list(job.save.slots)
        if job.failed:
            self._slots.discard(slots)
        else:
            names = hashes_to_bytes(hash_array(block.name for block in job.blocks))
            self._slots.commit(slots, b"".join(block.key for block in job.blocks), names)
