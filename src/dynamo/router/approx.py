"""What workers probably have cached, from nothing but where requests were sent. Pure."""

from collections import deque

from dynamo.protocols.generation import WorkerId
from dynamo.router.radix_tree import MAX_BLOCKS, OverlapScores, RadixTree
from dynamo.tokens import HashArray, hash_array

CLAIMS_MAX = 65536


class Claim:
    """A prompt was sent to a worker, which so has its blocks, or will have them."""

    __slots__ = ("counts", "due_s", "hashes", "index", "lapsed", "worker")

    def __init__(self, index: "ApproxKvIndexer", worker: WorkerId, hashes: HashArray, counts: dict[int, int]) -> None:
        self.index = index
        self.worker = worker
        self.hashes = hashes
        self.counts = counts  # of the worker, as long as it lives
        self.due_s: float | None = None  # when it lapses; None: not decided yet
        self.lapsed = False


class ApproxKvIndexer:
    """Believes each claim until `ttl_s` after it was settled, or until too many newer ones have come."""

    def __init__(self, ttl_s: float, max_blocks: int = MAX_BLOCKS, claims_max: int = CLAIMS_MAX) -> None:
        self._ttl_s = ttl_s
        self._claims_max = claims_max
        self._tree = RadixTree(max_blocks)
        self._counts: dict[WorkerId, dict[int, int]] = {}  # worker -> block -> claims that have it
        self._settled: deque[Claim] = deque()  # by due_s

    def __len__(self) -> int:
        """Different blocks."""
        return len(self._tree)

    def process_routing_decision(self, worker: WorkerId, hashes: HashArray, now_s: float) -> None:
        """A prompt with these blocks was sent to `worker`, which is believed to have them for `ttl_s`."""
        self.settle(self.claim(worker, hashes), now_s)

    def claim(self, worker: WorkerId, hashes: HashArray) -> Claim:
        """The same, to be believed until it is settled and `ttl_s` beyond."""
        counts = self._counts.setdefault(worker, {})
        for block in hashes:
            counts[block] = counts.get(block, 0) + 1
        self._tree.store(worker, hashes)
        return Claim(self, worker, hashes, counts)

    def settle(self, claim: Claim, now_s: float) -> None:
        """Starts the time after which the claim lapses; idempotent."""
        if claim.due_s is None:
            claim.due_s = now_s + self._ttl_s
            self._settled.append(claim)
            if len(self._settled) > self._claims_max:
                self._lapse(self._settled.popleft())

    def withdraw(self, claim: Claim) -> None:
        """The prompt will not be prefilled after all; idempotent."""
        if claim.due_s is None:
            self._lapse(claim)

    def find_matches(self, hashes: HashArray, now_s: float) -> OverlapScores:
        """As RadixTree.find_matches."""
        self.expire(now_s)
        return self._tree.find_matches(hashes)

    def expire(self, now_s: float) -> None:
        """Lets go of the claims that are due."""
        settled = self._settled
        while settled and (due_s := settled[0].due_s) is not None and due_s <= now_s:
            self._lapse(settled.popleft())

    def remove_worker(self, worker: WorkerId) -> None:
        self._tree.remove_worker(worker)
        self._counts.pop(worker, None)

    def _lapse(self, claim: Claim) -> None:
        if claim.lapsed:
            return
        claim.lapsed = True
        counts = claim.counts
        if self._counts.get(claim.worker) is not counts:  # the worker is gone
            return
        unclaimed = hash_array()
        for block in claim.hashes:
            left = counts.get(block, 0) - 1
            if left > 0:
                counts[block] = left
            else:
                counts.pop(block, None)
                unclaimed.append(block)
        self._tree.remove(claim.worker, unclaimed)
