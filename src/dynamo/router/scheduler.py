"""The KV router's decisions: requests and loads in, workers out. Pure: whoever calls it says what time it is.

Within a process `kv_placer` drives it over sockets, the simulator in virtual time.
"""

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from dynamo.errors import NoInstancesError, OverloadedError
from dynamo.protocols.generation import WorkerId
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.routing import Prospect
from dynamo.router.affinity import Sessions
from dynamo.router.config import Affinity, KvRouterConfig, QueuePolicy
from dynamo.router.cost import cost_blocks, decode_cost_blocks, select
from dynamo.router.explanation import no_overlap_reason
from dynamo.router.load_reports import LoadReports
from dynamo.router.prefix_caches import PrefixCaches, PromptMatch
from dynamo.router.queue import RequestQueue
from dynamo.router.radix_tree import NO_OVERLAP, Overlap, RadixTree
from dynamo.router.routing import Candidate, RoutingDecision, RoutingRequest, WorkerLimits
from dynamo.router.sequences import ActiveSequences, WorkerActivity

# Running requests that a worker may have: so many times the mean of all workers, and some more, where there are few.
_REQUESTS_OVER_MEAN = 1.5
_REQUESTS_SPARE = 4


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
    reports: LoadReports


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
        self.sequences = ActiveSequences(block_size, config.router_max_tree_size)
        self._rng = rng
        self._caches = PrefixCaches(config, block_size, tree, self.sequences, has_feed)
        self._workers: dict[WorkerId, _Worker] = {}
        self._queue = RequestQueue(QueuePolicy(config.router_queue_policy), config.router_queue_size)
        self._sessions = Sessions(config.router_session_ttl_secs)
        self._affinity = Affinity(config.router_session_affinity)

    # Workers

    def workers(self) -> Collection[WorkerId]:
        return self._workers.keys()

    def activities(self) -> list[tuple[WorkerId, WorkerActivity]]:
        """What each worker is busy with."""
        return [(worker.id, worker.activity) for worker in self._workers.values()]

    def set_workers(self, limits: Mapping[WorkerId, WorkerLimits]) -> None:
        """These workers there are, and no others. What the others were busy with has ended."""
        for worker_id in [w for w in self._workers if w not in limits]:
            self._remove_worker(worker_id)
        for worker_id, its_limits in limits.items():
            known = self._workers.get(worker_id)
            if known is None:
                activity = self.sequences.watch(worker_id)
                reports = LoadReports(self.sequences, activity)
                self._workers[worker_id] = _Worker(id=worker_id, limits=its_limits, activity=activity, reports=reports)
            else:
                known.limits = its_limits

    def expect_loads(self, instance_ids: Collection[int] | None = None) -> None:
        """These instances (None: all) tell their load next; answers that are still missing will not come any more."""
        for worker_id, worker in self._workers.items():
            if instance_ids is None or worker_id.instance_id in instance_ids:
                worker.reports.expect()

    def on_load(self, worker_id: WorkerId, load: WorkerLoad, now_s: float) -> list[str]:
        """What the worker says of itself, which corrects what is known of it.

        Returns the ids of requests that it cannot have any more, and which are freed. Others may be admitted then, here
        and after expect_loads().
        """
        worker = self._workers.get(worker_id)
        return [] if worker is None else worker.reports.take(load, now_s)

    def believed_blocks(self, now_s: float) -> int:
        """Different blocks that workers without events are believed to have."""
        return self._caches.believed_blocks(now_s)

    # Requests

    @property
    def queued(self) -> int:
        """Requests that wait for a worker."""
        return len(self._queue)

    def submit(self, request: RoutingRequest, now_s: float) -> RoutingDecision | None:
        """Chooses a worker; None when the request has to wait until take_admitted() gives it.

        The request counts as the worker's load until free(). An id that is known already is the same request, which
        needs a worker anew. Raises NoInstancesError when no worker may serve it, OverloadedError when too many wait
        already.
        """
        self.free(request.request_id)
        request.arrived_s = now_s
        candidates = self._candidates(request)
        if not self._queue and not self._all_busy():
            return self._assign(request, candidates, now_s)
        if self._queue.full:
            raise OverloadedError(f"{len(self._queue)} requests are waiting for a worker already")
        overlaps = self._caches.match(request, now_s).overlaps
        cached_blocks = max(overlaps.get(worker.id, NO_OVERLAP).total for worker in candidates)
        self._queue.push(request, request.prompt_tokens - cached_blocks * self.block_size)
        return None

    def take_admitted(self, now_s: float) -> list[Admitted]:
        """The requests that need not wait any longer; to be asked when load has gone or workers have changed."""
        admitted: list[Admitted] = []
        while (request := self._queue.peek()) is not None and not self._all_busy():
            self._queue.remove(request.request_id)
            try:
                decision = self._assign(request, self._candidates(request), now_s)
            except NoInstancesError:
                decision = None
            admitted.append(Admitted(request.request_id, decision))
        return admitted

    def look(self, request: RoutingRequest, now_s: float) -> RoutingDecision:
        """What submit() would choose now, without queue and without consequences. Raises NoInstancesError."""
        request.arrived_s = now_s
        return self._decide(request, self._candidates(request), now_s)

    def prospect(self, request: RoutingRequest, now_s: float) -> Prospect:
        """What the request would find where look() would send it. Raises NoInstancesError."""
        decision = self.look(request, now_s)
        return Prospect(
            cached_tokens=decision.overlap.total * self.block_size,
            waiting_tokens=self._workers[decision.worker].activity.prefill_tokens,
        )

    def first_token(self, request_id: str, now_s: float) -> None:
        """The prompt is prefilled. Ids that are not known are passed over, here and below."""
        sequence = self.sequences.first_token(request_id, now_s)
        if sequence is not None:
            self._caches.prefilled(sequence.worker, sequence.hold.hashes, now_s)

    def output(self, request_id: str, tokens: int, now_s: float) -> None:
        """The answer has grown by `tokens`."""
        self.sequences.output(request_id, tokens, now_s)

    def free(self, request_id: str) -> None:
        """The request has ended, or is not wanted any more."""
        self._queue.remove(request_id)
        self.sequences.free(request_id)

    def sweep(self, now_s: float) -> list[str]:
        """Frees the requests that have given no sign for long; their ids. Others may be admitted then."""
        return self.sequences.sweep(now_s - self.config.router_active_request_expiry_secs)

    # How it decides

    def _remove_worker(self, worker_id: WorkerId) -> None:
        del self._workers[worker_id]
        self._caches.remove_worker(worker_id)
        self.sequences.drop_worker(worker_id)

    def _candidates(self, request: RoutingRequest) -> list[_Worker]:
        """Those who may serve it; raises NoInstancesError where there are none."""
        candidates = list(self._workers.values())
        if request.eligible is not None:
            candidates = [worker for worker in candidates if request.eligible(worker.id)]
        if not candidates:
            raise NoInstancesError("no worker can take this request right now")
        return candidates

    def _all_busy(self) -> bool:
        """Whether every worker has more to prefill than the threshold allows.

        Even those that may not serve the request in question: one that waited for a certain worker would hold up all
        behind it who could go elsewhere.
        """
        threshold = self.config.router_queue_threshold
        if threshold is None or not self._workers:
            return False
        return all(
            worker.limits.max_num_batched_tokens is not None
            and worker.activity.prefill_tokens > threshold * worker.limits.max_num_batched_tokens
            for worker in self._workers.values()
        )

    def _assign(self, request: RoutingRequest, candidates: list[_Worker], now_s: float) -> RoutingDecision:
        decision = self._decide(request, candidates, now_s)
        worker_id = decision.worker
        cached_tokens = decision.overlap.total * self.block_size
        self.sequences.add(
            request.request_id,
            worker_id,
            prompt_tokens=request.prompt_tokens,
            # Engines always compute the last one.
            prefill_tokens=1 if request.prefilled else max(request.prompt_tokens - cached_tokens, 1),
            now_s=now_s,
            hashes=request.hashes,
            prefilled=request.prefilled,
        )
        if request.session_id is not None and self._affinity is not Affinity.OFF:
            self._sessions.put(request.session_id, worker_id, now_s)
        return decision

    def _decide(self, request: RoutingRequest, candidates: list[_Worker], now_s: float) -> RoutingDecision:
        match = self._caches.match(request, now_s)
        session_worker = self._session_worker(request, now_s)
        if session_worker is not None and self._affinity is Affinity.HARD:
            candidates = [session_worker]
        costs = self._costs(request, candidates, match, session_worker)
        chosen = self._choose(candidates, costs)
        worker_id = candidates[chosen].id
        described: tuple[Candidate, ...] = ()
        reason = None
        if request.explain:
            described = _described(candidates, costs, match, self._requests_max())
            reason = no_overlap_reason(
                request,
                self.block_size,
                described,
                described[chosen],
                match.overlaps,
                self._caches,
                in_session=candidates[chosen] is session_worker,
                now_s=now_s,
            )
        return RoutingDecision(
            request_id=request.request_id,
            worker=worker_id,
            overlap=match.overlaps.get(worker_id, NO_OVERLAP),
            prompt_blocks=len(request.hashes),
            cost=costs[chosen],
            mean_cost=sum(costs) / len(costs),
            queued_s=now_s - request.arrived_s,
            no_overlap_reason=reason,
            candidates=described,
        )

    def _choose(self, candidates: list[_Worker], costs: list[float]) -> int:
        """The position of the chosen one. Who has too many requests is passed over, unless all candidates have.

        A prefix that all requests have would else keep them on the first worker that had it.
        """
        chosen = select(costs, self.config.router_temperature, self._rng)
        requests_max = self._requests_max()
        if candidates[chosen].activity.requests <= requests_max:
            return chosen
        others = [i for i, worker in enumerate(candidates) if worker.activity.requests <= requests_max]
        if not others:
            return chosen
        return others[select([costs[i] for i in others], self.config.router_temperature, self._rng)]

    def _requests_max(self) -> float:
        """With more requests than this a worker has so many more than others that what it has cached is no reason."""
        return _REQUESTS_OVER_MEAN * self.sequences.requests / len(self._workers) + _REQUESTS_SPARE

    def _session_worker(self, request: RoutingRequest, now_s: float) -> _Worker | None:
        if request.session_id is None or self._affinity is Affinity.OFF:
            return None
        worker_id = self._sessions.worker(request.session_id, now_s)
        if worker_id is None or (request.eligible is not None and not request.eligible(worker_id)):
            return None
        return self._workers.get(worker_id)

    def _costs(
        self, request: RoutingRequest, candidates: list[_Worker], match: PromptMatch, session_worker: _Worker | None
    ) -> list[float]:
        activities = [worker.activity for worker in candidates]
        if request.prefilled:
            return decode_cost_blocks(self.config, self.block_size, request.prompt_tokens, activities, match)
        if session_worker is not None:
            whole = Overlap(device=-(-request.prompt_tokens // self.block_size))
            overlaps = {**match.overlaps, session_worker.id: whole}  # as if it had the prompt cached
            match = PromptMatch(overlaps, match.active, match.in_flight)
        return cost_blocks(self.config, self.block_size, request.prompt_tokens, activities, match)


def _described(
    candidates: list[_Worker], costs: list[float], match: PromptMatch, requests_max: float
) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(
            worker=worker.id,
            cost=cost,
            overlap=match.overlaps.get(worker.id, NO_OVERLAP),
            prefill_tokens=worker.activity.prefill_tokens,
            decode_blocks=worker.activity.blocks,
            has_too_many=worker.activity.requests > requests_max,
        )
        for worker, cost in zip(candidates, costs, strict=True)
    )
