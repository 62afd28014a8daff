"""Workers of one kind and the router that chooses among them, in virtual time."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Generic, TypeVar

from dynamo.engines.mocker.cache_events import CacheEvents
from dynamo.engines.mocker.sampler import Sampler
from dynamo.engines.mocker.scheduler import Scheduler, StepResult
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.engines.mocker.tiers_config import TiersConfig
from dynamo.engines.mocker.timing import TimingModel
from dynamo.protocols.generation import PreprocessedRequest
from dynamo.protocols.kv_events import KvEventBatch, Tier
from dynamo.simulator.event_loop import EventLoop
from dynamo.simulator.router_core import RouterCore
from dynamo.simulator.worker import SimulatedWorker, StepObserver, WorkerListener

EVENT_LATENCY_S = 0.001

Started = Callable[[int, SimulatedWorker, SequenceState, float], None]  # request id, where, as what, when

_VOCABULARY = range(2**32 - 1024, 2**32)  # no trace's block ids

R = TypeVar("R", bound=RouterCore, covariant=True)


class Pool(Generic[R]):
    """Its owner looks at what steps do, and tells the router of it. Workers may come and go."""

    def __init__(
        self,
        router: R,
        workers: int,
        engine: SchedulerConfig,
        timing: TimingModel,
        loop: EventLoop,
        *,
        started: Started,
        step_ended: StepObserver,
        step_began: StepObserver | None = None,
        event_latency_s: float = EVENT_LATENCY_S,
        tiers: TiersConfig | None = None,
    ) -> None:
        """`router` knows of the first `workers`, numbered from 0.

        `started` is called for each request that a worker is given; `step_ended` and `step_began` for each step.
        `event_latency_s`: after which time the router knows of a change in a cache. `tiers`: of each worker.
        """
        self.router = router
        self.drained: WorkerListener | None = None  # is told of each worker that withdraw() was called for
        self._engine = engine
        self._timing = timing
        self._tiers = tiers
        self._loop = loop
        self._started = started
        self._ended = step_ended
        self._began = step_began
        self._event_latency_s = event_latency_s
        self._sampler = Sampler(_VOCABULARY)
        self._cache_events: dict[int, CacheEvents] = {}
        self._workers: dict[int, SimulatedWorker] = {}  # those that take requests
        self._draining: dict[int, SimulatedWorker] = {}
        self._made = 0
        self._preemptions = 0  # of those that are gone, as the next one
        self._reused_blocks = dict.fromkeys(Tier, 0)
        for _ in range(workers):
            self._make_worker()
        self._unplaced: dict[int, PreprocessedRequest] = {}

    @property
    def workers(self) -> Collection[SimulatedWorker]:
        """Those that take requests, oldest first."""
        return self._workers.values()

    @property
    def draining(self) -> Collection[SimulatedWorker]:
        """Those that end what they have."""
        return self._draining.values()

    @property
    def preemptions(self) -> int:
        return self._preemptions + sum(worker.scheduler.preemptions for worker in self._present())

    @property
    def reused_blocks(self) -> dict[Tier, int]:
        """By where workers found them."""
        return {
            tier: gone + sum(worker.scheduler.reused_blocks[tier] for worker in self._present())
            for tier, gone in self._reused_blocks.items()
        }

    def start_worker(self, now_s: float) -> SimulatedWorker:
        """One more, which takes requests from now on, those first that found nobody."""
        worker = self._make_worker()
        self._tell_who_takes_requests(now_s)
        if len(self._workers) == 1:
            for request_id, request in self._unplaced.items():
                self._ask_router(request_id, request, now_s)
        self._start_placed(now_s)
        return worker

    def withdraw(self, worker: SimulatedWorker, now_s: float) -> None:
        """It gets no more requests, and is gone when it has ended those that it has."""
        self._draining[worker.index] = worker
        self._take_off_router(worker, now_s)
        if worker.idle:
            self._drained(worker, now_s)

    def kill(self, worker: SimulatedWorker, now_s: float) -> None:
        """It is gone, and so is all that it had."""
        worker.kill()
        if self._draining.pop(worker.index, None) is None:
            self._take_off_router(worker, now_s)
        self._forget(worker)

    def submit(self, request_id: int, request: PreprocessedRequest, now_s: float) -> None:
        """A request has arrived: a worker gets it, now or when the router says so, or when there is one."""
        self._unplaced[request_id] = request
        if self._workers:
            self._ask_router(request_id, request, now_s)
            self._start_placed(now_s)

    def _make_worker(self) -> SimulatedWorker:
        scheduler = Scheduler(self._engine, self._timing, self._sampler, tiers=self._tiers)
        index, self._made = self._made, self._made + 1
        if self.router.wants_cache_events:
            self._cache_events[index] = events = CacheEvents()
            scheduler.tell(events)
        worker = self._workers[index] = SimulatedWorker(
            index, scheduler, self._loop, self._step_ended, self._began, self._publish, self._idle
        )
        return worker

    def _take_off_router(self, worker: SimulatedWorker, now_s: float) -> None:
        if len(self._workers) == 1:  # who waits for a worker waits here then, for the next one
            for request_id in self._unplaced:
                self.router.free(request_id, now_s)
        del self._workers[worker.index]
        self._cache_events.pop(worker.index, None)
        self._tell_who_takes_requests(now_s)
        self._start_placed(now_s)

    def _tell_who_takes_requests(self, now_s: float) -> None:
        self.router.set_workers(self._workers.keys(), now_s)

    def _ask_router(self, request_id: int, request: PreprocessedRequest, now_s: float) -> None:
        self.router.submit(request_id, request.token_ids, now_s, prefilled=request.handoff is not None)

    def _start_placed(self, now_s: float) -> None:
        for request_id, index in self.router.take_placed():
            worker = self._workers[index]
            sequence = worker.submit(self._unplaced.pop(request_id), now_s)
            self._started(request_id, worker, sequence, now_s)

    def _step_ended(self, worker: SimulatedWorker, step: StepResult, now_s: float) -> None:
        self._publish(worker, now_s)
        self._ended(worker, step, now_s)
        self._start_placed(now_s)

    def _idle(self, worker: SimulatedWorker, now_s: float) -> None:
        if worker.index in self._draining:
            self._drained(worker, now_s)

    def _drained(self, worker: SimulatedWorker, now_s: float) -> None:
        del self._draining[worker.index]
        self._forget(worker)
        if self.drained is not None:
            self.drained(worker, now_s)

    def _forget(self, worker: SimulatedWorker) -> None:
        self._preemptions += worker.scheduler.preemptions
        for tier, blocks in worker.scheduler.reused_blocks.items():
            self._reused_blocks[tier] += blocks

    def _present(self) -> list[SimulatedWorker]:
        return [*self._workers.values(), *self._draining.values()]

    def _publish(self, worker: SimulatedWorker, now_s: float) -> None:
        cache_events = self._cache_events.get(worker.index)
        if cache_events is not None:
            events = cache_events.take()
            if events:
                batch = KvEventBatch(0, events)
                self._loop.at(now_s + self._event_latency_s, partial(self._tell_router, worker.index, batch))

    def _tell_router(self, worker: int, batch: KvEventBatch, now_s: float) -> None:
        if worker in self._workers:
            self.router.cache_changed(worker, batch)
