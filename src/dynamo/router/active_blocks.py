"""Which blocks are in use on which worker, each counted once however many requests share it. Pure."""

from dynamo.protocols.generation import WorkerId
from dynamo.router.radix_tree import MAX_BLOCKS, OverlapScores, RadixTree
from dynamo.tokens import HashArray


class Hold:
    """One request's hold on the blocks of its prompt."""

    __slots__ = ("counts", "fresh", "hashes", "worker")

    def __init__(self, worker: WorkerId, hashes: HashArray, counts: dict[int, int], fresh: int) -> None:
        self.worker = worker
        self.hashes = hashes
        self.counts = counts  # of the worker, as long as it lives
        self.fresh = fresh  # blocks that nobody held there before


class ActiveBlocks:
    """Counts holds by block and worker. Where one is found, so is all that precedes it."""

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._tree = RadixTree(max_blocks)
        self._counts: dict[WorkerId, dict[int, int]] = {}  # worker -> block -> holds; none is empty

    def __len__(self) -> int:
        """Different blocks."""
        return len(self._tree)

    def hold(self, worker: WorkerId, hashes: HashArray) -> Hold:
        """`hashes` are sequence hashes from the first block of a prompt on."""
        if not hashes:
            return Hold(worker, hashes, {}, 0)
        counts = self._counts.get(worker)
        if counts is None:
            counts = self._counts[worker] = {}
        before = len(counts)
        for block in hashes:
            counts[block] = counts.get(block, 0) + 1
        self._tree.store(worker, hashes)
        return Hold(worker, hashes, counts, len(counts) - before)

    def release(self, hold: Hold) -> int:
        """Ends a hold, once; returns how many blocks nobody holds there any more."""
        counts = hold.counts
        if self._counts.get(hold.worker) is not counts:  # the worker is gone, or nothing was held
            return 0
        before = len(counts)
        for block in hold.hashes:
            others = counts[block] - 1
            if others:
                counts[block] = others
            else:
                del counts[block]
        released = before - len(counts)
        if not counts:
            self.remove_worker(hold.worker)
        elif released:  # the last ones: all that hold a block hold what precedes it
            self._tree.remove(hold.worker, hold.hashes[-released:])
        return released

    def find_matches(self, hashes: HashArray) -> OverlapScores:
        """As RadixTree.find_matches."""
        return self._tree.find_matches(hashes)

    def remove_worker(self, worker: WorkerId) -> None:
        """`worker` is gone; should one with its name come, holds on the former are none on it."""
        self._tree.remove_worker(worker)
        self._counts.pop(worker, None)
