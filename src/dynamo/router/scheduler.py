"""The KV router's decisions: requests, events and loads in, workers out. Pure: whoever calls it says what time it is.

Within a process `kv_router` drives it over sockets, the simulator in virtual time.
"""

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from dynamo.errors import NoInstancesError, OverloadedError
from dynamo.protocols.generation import WorkerId
from dynamo.protocols.load import WorkerLoad
from dynamo.router.affinity import Sessions
from dynamo.router.approx import ApproxKvIndexer, Claim
from dynamo.router.config import Affinity, KvRouterConfig, QueuePolicy
from dynamo.router.cost import cost_blocks, credit_blocks, select
from dynamo.router.kernel import sequence_hashes
from dynamo.router.queue import RequestQueue
from dynamo.router.radix_tree import NO_OVERLAP, Overlap, OverlapScores, RadixTree
from dynamo.router.routing import Candidate, RoutingDecision, RoutingRequest, WorkerLimits
from dynamo.router.sequences import ActiveSequences, WorkerActivity
from dynamo.tokens import HASH_SEED


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that has waited long enough."""

    request_id: str
    decision: RoutingDecision | None  # None: there is no worker for it any more


@dataclass(slots=True, kw_only=True, eq=False)
class _Worker:
    id: WorkerId
    limits: WorkerLimits
    activity: WorkerActivity
    foreign_blocks: int = 0  # in use by what did not come through here, as the worker's own load shows


class KvScheduler:
    """Decides for the workers of one model, all with KV blocks of `block_size` tokens.

    `tree` is what workers say they have cached, and not the scheduler's to change. `has_feed` tells which instances do
    say so: the others are believed to have what they were sent.
    """

    def __init__(
        self,
        config: KvRouterConfig,
        block_size: int,
        rng: random.Random,
        tree: RadixTree,
        has_feed: Callable[[int], bool],
    ) -> None:
        self.config = config
        self.block_size = block_size
        self.tree = tree
        self.sequences = ActiveSequences(block_size)
        self._rng = rng
        self._has_feed = has_feed
        self._predicted = ApproxKvIndexer(config.router_predicted_ttl_secs, config.router_max_tree_size)
        self._approx = ApproxKvIndexer(config.router_ttl_secs, config.router_max_tree_size)
        self._workers: dict[WorkerId, _Worker] = {}
        self._claims: dict[str, Claim] = {}  # by request, until it has ended
        self._queue = RequestQueue(QueuePolicy(config.router_queue_policy), config.router_queue_size)
        self._sessions = Sessions(config.router_session_ttl_secs)
        self._affinity = Affinity(config.router_session_affinity)

    # Workers

    def workers(self) -> Collection[WorkerId]:
        return self._workers.keys()

    def activities(self) -> list[tuple[WorkerId, WorkerActivity]]:
        """What each worker is busy with, as far as it came through here."""
        return [(worker.id, worker.activity) for worker in self._workers.values()]

    def set_workers(self, limits: Mapping[WorkerId, WorkerLimits]) -> None:
        """These workers there are, and no others."""
        for worker_id in self._workers.keys() - limits.keys():
            self._remove_worker(worker_id)
        for worker_id in limits:
            known = self._workers.get(worker_id)
            if known is None:
                activity = self.sequences.watch(worker_id)
                self._workers[worker_id] = _Worker(id=worker_id, limits=limits[worker_id], activity=activity)
            else:
                known.limits = limits[worker_id]

    def on_load(self, worker_id: WorkerId, load: WorkerLoad) -> None:
        """What the worker says of itself. What it has in use beyond what was sent from here is somebody else's."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.foreign_blocks = max(0, load.kv_used_blocks - worker.activity.blocks)

    # Requests

    @property
    def queued(self) -> int:
        """Requests that wait for a worker."""
        return len(self._queue)

    def submit(self, request: RoutingRequest, now_s: float) -> RoutingDecision | None:
        """Chooses a worker; None when the request has to wait until take_admitted() gives it.

        The request counts as the worker's load until free(). Raises NoInstancesError when no worker may serve it,
        OverloadedError when too many wait already.
        """
        request.arrived_s = now_s
        request.hashes = sequence_hashes(request.token_ids, self.block_size, request.seed)
        candidates = self._candidates(request)
        if not candidates:
            raise NoInstancesError("no worker can take this request right now")
        if not self._queue and not self._all_busy(candidates):
            return self._assign(request, candidates, now_s)
        if self._queue.full:
            raise OverloadedError(f"{len(self._queue)} requests are waiting for a worker already")
        cached_blocks = max((o.total for o in self._overlaps(request, now_s).overlaps.values()), default=0)
        self._queue.push(request, request.prompt_tokens - cached_blocks * self.block_size)
        return None

    def take_admitted(self, now_s: float) -> list[Admitted]:
        """The requests that need not wait any longer; to be asked when load has gone or workers have changed."""
        admitted: list[Admitted] = []
        while (request := self._queue.peek()) is not None:
            candidates = self._candidates(request)
            if candidates and self._all_busy(candidates):
                break
            self._queue.remove(request.request_id)
            decision = self._assign(request, candidates, now_s) if candidates else None
            admitted.append(Admitted(request.request_id, decision))
        return admitted

    def look(self, request: RoutingRequest, now_s: float) -> RoutingDecision:
        """What submit() would choose now, without queue and without consequences. Raises NoInstancesError."""
        request.arrived_s = now_s
        request.hashes = sequence_hashes(request.token_ids, self.block_size, request.seed)
        candidates = self._candidates(request)
        if not candidates:
            raise NoInstancesError("there is no worker")
        return self._decide(request, candidates, self._overlaps(request, now_s), now_s)

    def first_token(self, request_id: str, now_s: float) -> None:
        """The prompt is prefilled. Ids that are not known are passed over, here and below."""
        self.sequences.first_token(request_id, now_s)
        claim = self._claims.get(request_id)
        if claim is not None:
            claim.index.settle(claim, now_s)

    def output(self, request_id: str, tokens: int, now_s: float) -> None:
        """The answer has grown by `tokens`."""
        self.sequences.output(request_id, tokens, now_s)

    def free(self, request_id: str) -> None:
        """The request has ended, or is not wanted any more."""
        self._queue.remove(request_id)
        self.sequences.free(request_id)
        claim = self._claims.pop(request_id, None)
        if claim is not None:
            claim.index.withdraw(claim)

    def sweep(self, now_s: float) -> list[str]:
        """Frees the requests that have given no sign for long; their ids."""
        stale = self.sequences.sweep(now_s - self.config.router_active_request_expiry_secs)
        for request_id in stale:
            self.free(request_id)
        return stale

    # How it decides

    def _remove_worker(self, worker_id: WorkerId) -> None:
        del self._workers[worker_id]
        self._predicted.remove_worker(worker_id)
        self._approx.remove_worker(worker_id)
        self.sequences.drop_worker(worker_id)

    def _candidates(self, request: RoutingRequest) -> list[_Worker]:
        eligible = request.eligible
        return [w for w in self._workers.values() if eligible is None or eligible(w.id)]

    def _all_busy(self, candidates: list[_Worker]) -> bool:
        threshold = self.config.router_queue_threshold
        if threshold is None:
            return False
        return all(
            w.limits.max_num_batched_tokens is not None
            and w.activity.prefill_tokens > threshold * w.limits.max_num_batched_tokens
            for w in candidates
        )

    def _overlaps(self, request: RoutingRequest, now_s: float) -> OverlapScores:
        """From the workers' events, and from where requests were sent: whichever says more."""
        found = self.tree.find_matches(request.hashes)
        for index in (self._predicted, self._approx):
            if len(index):
                for worker, guess in index.find_matches(request.hashes, now_s).overlaps.items():
                    if guess.device > found.of(worker).total:
                        found.overlaps[worker] = guess
        return found

    def _assign(self, request: RoutingRequest, candidates: list[_Worker], now_s: float) -> RoutingDecision:
        decision = self._decide(request, candidates, self._overlaps(request, now_s), now_s)
        worker_id = decision.worker
        cached_tokens = decision.overlap.total * self.block_size
        self.sequences.add(
            request.request_id,
            worker_id,
            prompt_tokens=request.prompt_tokens,
            prefill_tokens=max(request.prompt_tokens - cached_tokens, 1),
            now_s=now_s,
        )
        index = self._predicted if self._has_feed(worker_id.instance_id) else self._approx
        self._claims[request.request_id] = index.claim(worker_id, request.hashes)
        if request.session_id is not None and self._affinity is not Affinity.OFF:
            self._sessions.put(request.session_id, worker_id, now_s)
        return decision

    def _decide(
        self, request: RoutingRequest, candidates: list[_Worker], overlaps: OverlapScores, now_s: float
    ) -> RoutingDecision:
        session_worker = self._session_worker(request, candidates, now_s)
        if session_worker is not None and self._affinity is Affinity.HARD:
            candidates = [session_worker]
        found, config, block_size = overlaps.overlaps, self.config, self.block_size
        prompt_tokens = request.prompt_tokens
        costs: list[float] = []
        for worker in candidates:
            overlap = found.get(worker.id, NO_OVERLAP)
            credit = credit_blocks(config, overlap) if overlap is not NO_OVERLAP else 0.0
            if worker is session_worker:
                credit = max(credit, config.overlap_score_weight * prompt_tokens / block_size)
            costs.append(
                cost_blocks(
                    config,
                    block_size=block_size,
                    prompt_tokens=prompt_tokens,
                    prefill_tokens=worker.activity.prefill_tokens,
                    decode_blocks=worker.activity.blocks + worker.foreign_blocks,
                    credit=credit,
                )
            )
        chosen = select(costs, config.router_temperature, self._rng)
        worker, overlap = candidates[chosen], found.get(candidates[chosen].id, NO_OVERLAP)
        return RoutingDecision(
            request_id=request.request_id,
            worker=worker.id,
            overlap=overlap,
            prompt_blocks=len(request.hashes),
            cost=costs[chosen],
            mean_cost=sum(costs) / len(costs),
            queued_s=now_s - request.arrived_s,
            no_overlap_reason=self._no_overlap_reason(request, overlap, overlaps) if request.explain else None,
            candidates=_described(candidates, costs, overlaps) if request.explain else (),
        )

    def _session_worker(self, request: RoutingRequest, candidates: list[_Worker], now_s: float) -> _Worker | None:
        if request.session_id is None or self._affinity is Affinity.OFF:
            return None
        worker_id = self._sessions.worker(request.session_id, now_s)
        return next((w for w in candidates if w.id == worker_id), None)

    def _no_overlap_reason(self, request: RoutingRequest, overlap: Overlap, overlaps: OverlapScores) -> str | None:
        if overlap.total:
            return None
        if not request.hashes:
            return f"the prompt has {request.prompt_tokens} tokens, a block {self.block_size}"
        if overlaps.overlaps:
            return "another worker has a part of the prompt, but costs more"
        if request.seed != HASH_SEED:
            plain = sequence_hashes(request.token_ids, self.block_size, HASH_SEED)
            if self.tree.find_matches(plain).overlaps:
                return "the prompt is cached for another LoRA adapter or cache salt"
        if not len(self.tree) and not len(self._approx) and not len(self._predicted):
            return "nothing is known to be cached: no worker has sent an event, and no prompt has been sent"
        return "no worker has the first block of the prompt"


def _described(candidates: list[_Worker], costs: list[float], overlaps: OverlapScores) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(
            worker=worker.id,
            cost=cost,
            overlap=overlaps.of(worker.id),
            prefill_tokens=worker.activity.prefill_tokens,
            decode_blocks=worker.activity.blocks + worker.foreign_blocks,
        )
        for worker, cost in zip(candidates, costs, strict=True)
    )
