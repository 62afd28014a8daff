"""Workers of one kind and the router that chooses among them, in virtual time."""

from collections.abc import Callable
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
from dynamo.simulator.worker import SimulatedWorker, StepObserver

EVENT_LATENCY_S = 0.001

Started = Callable[[int, SimulatedWorker, SequenceState, float], None]  # request id, where, as what, when

_VOCABULARY = range(2**32 - 1024, 2**32)  # no trace's block ids

R = TypeVar("R", bound=RouterCore)


class Pool(Generic[R]):
    """Its owner looks at what steps do, and tells the router of it."""

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
        """`started` is called for each request that a worker is given; `step_ended` and `step_began` for each step.

        `event_latency_s`: after which time the router knows of a change in a cache. `tiers`: of each worker.
        """
        self.router = router
        self._loop = loop
        self._started = started
        self._ended = step_ended
        self._event_latency_s = event_latency_s
        sampler = Sampler(_VOCABULARY)
        schedulers = [Scheduler(engine, timing, sampler, tiers=tiers) for _ in range(workers)]
        self._cache_events = [CacheEvents() for _ in range(workers)] if router.wants_cache_events else []
        for scheduler, events in zip(schedulers, self._cache_events, strict=False):
            scheduler.tell(events)
        self._workers = [
            SimulatedWorker(index, scheduler, loop, self._step_ended, step_began, self._publish)
            for index, scheduler in enumerate(schedulers)
        ]
        self._unplaced: dict[int, PreprocessedRequest] = {}

    @property
    def preemptions(self) -> int:
        return sum(worker.scheduler.preemptions for worker in self._workers)

    @property
    def reused_blocks(self) -> dict[Tier, int]:
        """By where workers found them."""
        return {tier: sum(worker.scheduler.reused_blocks[tier] for worker in self._workers) for tier in Tier}

    def submit(self, request_id: int, request: PreprocessedRequest, now_s: float) -> None:
        """A request has arrived: a worker gets it, now or when the router says so."""
        self._unplaced[request_id] = request
        self.router.submit(request_id, request.token_ids, now_s, prefilled=request.handoff is not None)
        self._start_placed(now_s)

    def _start_placed(self, now_s: float) -> None:
        for request_id, index in self.router.take_placed():
            worker = self._workers[index]
            sequence = worker.submit(self._unplaced.pop(request_id), now_s)
            self._started(request_id, worker, sequence, now_s)

    def _step_ended(self, worker: SimulatedWorker, step: StepResult, now_s: float) -> None:
        self._publish(worker, now_s)
        self._ended(worker, step, now_s)
        self._start_placed(now_s)

    def _publish(self, worker: SimulatedWorker, now_s: float) -> None:
        if self._cache_events:
            events = self._cache_events[worker.index].take()
            if events:
                batch = KvEventBatch(0, events)
                self._loop.at(now_s + self._event_latency_s, partial(self._tell_router, worker.index, batch))

    def _tell_router(self, worker: int, batch: KvEventBatch, now_s: float) -> None:
        self.router.cache_changed(worker, batch)
