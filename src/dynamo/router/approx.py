"""What workers probably have cached, from nothing but where requests were sent. Pure."""

import math
from bisect import bisect_left
from collections import Counter, deque

from dynamo.protocols.generation import WorkerId
from dynamo.router.radix_tree import MAX_BLOCKS, OverlapScores, RadixTree
from dynamo.tokens import HashArray, hash_array


class Claim:
    """A prompt was sent to a worker, which so has its blocks, or will have them."""

    __slots__ = ("counts", "due_s", "hashes", "index", "worker")

    def __init__(self, index: "ApproxKvIndexer", worker: WorkerId, hashes: HashArray, counts: Counter[int]) -> None:
        self.index = index
        self.worker = worker
        self.hashes = hashes  # none any more once it has lapsed
        self.counts = counts  # of the worker, as long as it lives
        self.due_s = math.inf  # when it lapses; not decided before it is settled


class ApproxKvIndexer:
    """Believes each claim until `ttl_s` after it was settled, or until newer ones have `max_blocks` blocks."""

    def __init__(self, ttl_s: float, max_blocks: int = MAX_BLOCKS) -> None:
        self._ttl_s = ttl_s
        self._max_blocks = max_blocks
        self._tree = RadixTree(max_blocks)
        self._counts: dict[WorkerId, Counter[int]] = {}  # worker -> block -> claims that have it
        self._settled: deque[Claim] = deque()  # by due_s
        self._settled_blocks = 0  # that these have, one by one

    def __len__(self) -> int:
        """Different blocks."""
        return len(self._tree)

    def process_routing_decision(self, worker: WorkerId, hashes: HashArray, now_s: float) -> None:
        """A prompt with these blocks was sent to `worker`, which is believed to have them for `ttl_s`."""
        self.settle(self.claim(worker, hashes), now_s)

    def claim(self, worker: WorkerId, hashes: HashArray) -> Claim:
        """The same, to be believed until it is settled and `ttl_s` beyond; or until it is withdrawn.

        `hashes` are sequence hashes from the first block on.
        """
        counts = self._counts.get(worker)
        if counts is None:
            counts = self._counts[worker] = Counter()
        counts.update(hashes)
        self._tree.store(worker, hashes)
        return Claim(self, worker, hashes, counts)

    def settle(self, claim: Claim, now_s: float) -> None:
        """Starts the time after which the claim lapses; idempotent."""
        if claim.due_s < math.inf or not claim.hashes:
            return
        claim.due_s = now_s + self._ttl_s
        self._settled.append(claim)
        self._settled_blocks += len(claim.hashes)
        while self._settled_blocks > self._max_blocks:
            self._lapse_oldest()

    def withdraw(self, claim: Claim) -> None:
        """The prompt will not be prefilled after all, if it is not already; idempotent."""
        if claim.due_s == math.inf:
            self._lapse(claim)

    def find_matches(self, hashes: HashArray, now_s: float) -> OverlapScores:
        """As RadixTree.find_matches."""
        self.expire(now_s)
        return self._tree.find_matches(hashes)

    def expire(self, now_s: float) -> None:
        """Lets go of the claims that are due."""
        while self._settled and self._settled[0].due_s <= now_s:
            self._lapse_oldest()

    def remove_worker(self, worker: WorkerId) -> None:
        """`worker` is gone; should one with its name come, the claims on the former are none on it."""
        self._tree.remove_worker(worker)
        self._counts.pop(worker, None)

    def _lapse_oldest(self) -> None:
        claim = self._settled.popleft()
        self._settled_blocks -= len(claim.hashes)
        self._lapse(claim)

    def _lapse(self, claim: Claim) -> None:
        hashes, claim.hashes = claim.hashes, hash_array()
        counts = claim.counts
        if self._counts.get(claim.worker) is not counts:  # the worker is gone
            return
        # No block has more claims than the one before it: all that claim a block claim what precedes it.
        shared = bisect_left(hashes, True, key=lambda block: counts[block] == 1)
        for block in hashes[:shared]:
            counts[block] -= 1
        unclaimed = hashes[shared:]
        for block in unclaimed:
            counts.pop(block)
        self._tree.remove(claim.worker, unclaimed)
