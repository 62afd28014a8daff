"""What the workers have in their prefix caches: as they say, and as follows from what they were sent. Pure."""

from collections.abc import Callable

from dynamo.protocols.generation import WorkerId
from dynamo.router.approx import ApproxKvIndexer, Claim
from dynamo.router.config import KvRouterConfig
from dynamo.router.radix_tree import Overlap, RadixTree
from dynamo.router.routing import RoutingRequest
from dynamo.tokens import HASH_SEED

Overlaps = dict[WorkerId, Overlap]  # of one prompt; workers without any are left out


class PrefixCaches:
    """The workers' own events, and a claim for each request that is on a worker.

    A worker whose events are heard is believed to have a prompt from when it was sent until shortly after its first
    token, when the events must have told: so that siblings which come in a burst find each other. The others are
    believed for much longer.
    """

    def __init__(
        self, config: KvRouterConfig, block_size: int, tree: RadixTree, has_feed: Callable[[int], bool]
    ) -> None:
        """`tree` is what the events say, and others keep it; `has_feed` tells whose events are heard."""
        self._tree = tree
        self._block_size = block_size
        self._has_feed = has_feed
        self._predicted = ApproxKvIndexer(config.router_predicted_ttl_secs, config.router_max_tree_size)
        self._approx = ApproxKvIndexer(config.router_ttl_secs, config.router_max_tree_size)
        self._claims: dict[str, Claim] = {}  # by request

    @property
    def empty(self) -> bool:
        """Nothing is known to be cached anywhere."""
        return not (len(self._tree) or len(self._predicted) or len(self._approx))

    def match(self, request: RoutingRequest, now_s: float) -> Overlaps:
        """Who has how much of the prompt: of events and guesses, what says more. Fills in the request's hashes."""
        hashes, scores = self._tree.hash_and_match(request.token_ids, self._block_size, request.seed)
        request.hashes = hashes
        overlaps = scores.overlaps
        if len(self._predicted):
            _raise(overlaps, self._predicted.find_matches(hashes, now_s).overlaps)
        if len(self._approx):
            guesses = self._approx.find_matches(hashes, now_s).overlaps
            # Claims outlive the moment from which the events are heard.
            _raise(overlaps, {w: guess for w, guess in guesses.items() if not self._has_feed(w.instance_id)})
        return overlaps

    def known_elsewhere(self, request: RoutingRequest) -> bool:
        """Whether somebody has the prompt's tokens in a cache for no adapter and no salt, but the request has one."""
        if request.seed == HASH_SEED:
            return False
        _, scores = self._tree.hash_and_match(request.token_ids, self._block_size, HASH_SEED)
        return bool(scores.overlaps)

    def sent(self, request: RoutingRequest, worker: WorkerId) -> None:
        """`worker` gets the request, which match() has seen."""
        if request.hashes:
            index = self._predicted if self._has_feed(worker.instance_id) else self._approx
            self._claims[request.request_id] = index.claim(worker, request.hashes)

    def prefilled(self, request_id: str, now_s: float) -> None:
        """The worker has the prompt now. Ids that are not known are passed over, here and below."""
        claim = self._claims.get(request_id)
        if claim is not None:
            claim.index.settle(claim, now_s)

    def ended(self, request_id: str) -> None:
        """The request is on its worker no longer: what was not prefilled will not be."""
        claim = self._claims.pop(request_id, None)
        if claim is not None:
            claim.index.withdraw(claim)

    def remove_worker(self, worker: WorkerId) -> None:
        """`worker` is gone; its requests still have to end."""
        self._predicted.remove_worker(worker)
        self._approx.remove_worker(worker)


def _raise(overlaps: Overlaps, guesses: Overlaps) -> None:
    for worker, guess in guesses.items():
        known = overlaps.get(worker)
        if known is None or guess.device >= known.total:  # what it was sent is on its device
            overlaps[worker] = guess
