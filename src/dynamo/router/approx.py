"""What workers probably have cached, from nothing but where requests were sent. Pure."""

from collections import deque

from dynamo.protocols.generation import WorkerId
from dynamo.router.active_blocks import ActiveBlocks, Hold
from dynamo.router.radix_tree import MAX_BLOCKS, OverlapScores
from dynamo.tokens import HashArray


class ApproxKvIndexer:
    """Believes for `ttl_s` that a worker has what it was sent, or until later prompts have `max_blocks` blocks."""

    def __init__(self, ttl_s: float, max_blocks: int = MAX_BLOCKS) -> None:
        self._ttl_s = ttl_s
        self._max_blocks = max_blocks
        self._blocks = ActiveBlocks(max_blocks)
        self._believed: deque[tuple[float, Hold]] = deque()  # with when they lapse, soonest first
        self._believed_blocks = 0  # that these have, one by one

    def __len__(self) -> int:
        """Different blocks."""
        return len(self._blocks)

    def process_routing_decision(self, worker: WorkerId, hashes: HashArray, now_s: float) -> None:
        """A prompt was sent to `worker`.

        `hashes` must be its sequence hashes (`dynamo.tokens`) from the first block on. Nothing checks that: where they
        are others, what is found is wrong, and when the prompt lapses another's blocks may be forgotten in place of
        its own.
        """
        if not hashes:
            return
        self._believed_blocks += len(hashes)
        while self._believed and self._believed_blocks > self._max_blocks:
            self._forget_oldest()
        self._believed.append((now_s + self._ttl_s, self._blocks.hold(worker, hashes)))

    def find_matches(self, hashes: HashArray, now_s: float) -> OverlapScores:
        """As RadixTree.find_matches."""
        self.expire(now_s)
        return self._blocks.find_matches(hashes)

    def expire(self, now_s: float) -> None:
        """Forgets what was sent too long ago."""
        while self._believed and self._believed[0][0] <= now_s:
            self._forget_oldest()

    def remove_worker(self, worker: WorkerId) -> None:
        self._blocks.remove_worker(worker)

    def _forget_oldest(self) -> None:
        _, hold = self._believed.popleft()
        self._believed_blocks -= len(hold.hashes)
        self._blocks.release(hold)
