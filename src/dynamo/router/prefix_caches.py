"""What the workers have of a prompt: as their events say, and as follows from what they were sent. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field

from dynamo.protocols.generation import WorkerId
from dynamo.router.approx import ApproxKvIndexer
from dynamo.router.config import KvRouterConfig
from dynamo.router.radix_tree import NO_OVERLAP, Overlap, RadixTree
from dynamo.router.routing import RoutingRequest
from dynamo.router.sequences import ActiveSequences
from dynamo.tokens import HASH_SEED, HashArray

Overlaps = dict[WorkerId, Overlap]  # of one prompt; workers without any are left out


@dataclass(frozen=True, slots=True)
class PromptMatch:
    """What the workers have of one prompt, in blocks from the first on; those that have nothing are left out."""

    overlaps: Overlaps  # cached, or about to be
    active: dict[WorkerId, int] = field(default_factory=dict)  # of these, in use by running requests
    in_flight: dict[WorkerId, int] = field(default_factory=dict)  # of those, not known to be prefilled yet


class PrefixCaches:
    """The workers' own events; the blocks of the requests that are on a worker; and for workers without events, what
    they have prefilled of late.

    What a running request uses is cached, or will be before anything that is sent now: so requests with one prefix
    that come in a burst find each other.
    """

    def __init__(
        self,
        config: KvRouterConfig,
        block_size: int,
        tree: RadixTree,
        sequences: ActiveSequences,
        has_feed: Callable[[int], bool],
    ) -> None:
        """`tree` is what the events say, and others keep it; `has_feed` tells whose events are heard."""
        self._tree = tree
        self._block_size = block_size
        self._sequences = sequences
        self._has_feed = has_feed
        self._approx = ApproxKvIndexer(config.router_ttl_secs, config.router_max_tree_size)

    @property
    def empty(self) -> bool:
        """Nothing is known to be cached anywhere."""
        return not (len(self._tree) or len(self._approx) or self._sequences.active_blocks)

    def believed_blocks(self, now_s: float) -> int:
        """Different blocks that follow from what workers have prefilled of late."""
        self._approx.expire(now_s)
        return len(self._approx)

    def match(self, request: RoutingRequest, now_s: float) -> PromptMatch:
        """Who has how much of the prompt. Fills in the request's hashes."""
        hashes, scores = self._tree.hash_and_match(request.token_ids, self._block_size, request.seed)
        request.hashes = hashes
        return self._completed(scores.overlaps, hashes, now_s)

    def known_elsewhere(self, request: RoutingRequest, now_s: float) -> bool:
        """Whether somebody has the prompt's tokens in a cache for no adapter and no salt, but the request has one."""
        if request.seed == HASH_SEED:
            return False
        hashes, scores = self._tree.hash_and_match(request.token_ids, self._block_size, HASH_SEED)
        return bool(self._completed(scores.overlaps, hashes, now_s).overlaps)

    def prefilled(self, worker: WorkerId, hashes: HashArray, now_s: float) -> None:
        """`worker` has a prompt in its cache now."""
        if not self._has_feed(worker.instance_id):
            self._approx.process_routing_decision(worker, hashes, now_s)

    def remove_worker(self, worker: WorkerId) -> None:
        """`worker` is gone."""
        self._approx.remove_worker(worker)

    def _completed(self, overlaps: Overlaps, hashes: HashArray, now_s: float) -> PromptMatch:
        """What the events say, and what is known beside."""
        if len(self._approx):
            self._add_believed(overlaps, hashes, now_s)
        match = PromptMatch(overlaps)
        if self._sequences.active_blocks:
            self._add_active(match, hashes)
        return match

    def _add_believed(self, overlaps: Overlaps, hashes: HashArray, now_s: float) -> None:
        for worker, guess in self._approx.find_matches(hashes, now_s).overlaps.items():
            # What was believed before a worker's events were heard counts no more. While they are not heard any more,
            # what they had said is still true of most blocks.
            if not self._has_feed(worker.instance_id) and guess.total >= overlaps.get(worker, NO_OVERLAP).total:
                overlaps[worker] = guess

    def _add_active(self, match: PromptMatch, hashes: HashArray) -> None:
        overlaps = match.overlaps
        for worker, used in self._sequences.find_active(hashes).overlaps.items():
            match.active[worker] = used.device
            known = overlaps.get(worker, NO_OVERLAP)
            unknown_blocks = used.device - known.total
            if unknown_blocks >= 0:
                overlaps[worker] = used  # what is in use is on the device
            if unknown_blocks > 0:
                match.in_flight[worker] = unknown_blocks
