"""A router and its workers in virtual time."""

from collections.abc import Sequence
from functools import partial

from dynamo.clock import VirtualClock
from dynamo.engines.mocker.cache_events import CacheEvents
from dynamo.engines.mocker.sampler import Sampler
from dynamo.engines.mocker.scheduler import Scheduler, StepResult
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.engines.mocker.timing import TimingModel
from dynamo.protocols.generation import PreprocessedRequest, SamplingOptions, StopConditions
from dynamo.protocols.kv_events import KvEventBatch
from dynamo.simulator.event_loop import EventLoop
from dynamo.simulator.record import RequestRecord, RunRecord
from dynamo.simulator.router_core import RouterCore
from dynamo.simulator.trace import BLOCK_SIZE, TraceRequest
from dynamo.simulator.worker import SimulatedWorker
from dynamo.tokens import TokenArray

_VOCABULARY = range(2**32 - 1024, 2**32)  # no trace's block ids


class Cluster:
    """Sends requests through a router to workers, and notes down what becomes of them. Good for one run."""

    def __init__(
        self,
        router: RouterCore,
        workers: int,
        engine: SchedulerConfig,
        timing: TimingModel,
        *,
        event_latency_s: float = 0.001,
        trace_block_size: int = BLOCK_SIZE,
    ) -> None:
        """`event_latency_s`: after which time the router knows of a change in a cache."""
        self._router = router
        self._event_latency_s = event_latency_s
        self._trace_block_size = trace_block_size
        self._block_size = engine.block_size
        self._loop = EventLoop(VirtualClock())
        sampler = Sampler(_VOCABULARY)
        self._cache_events = [CacheEvents() for _ in range(workers)] if router.wants_cache_events else []
        observers: Sequence[CacheEvents | None] = self._cache_events or [None] * workers
        self._workers = [
            SimulatedWorker(index, Scheduler(engine, timing, sampler, observer), self._loop, self._step_ended)
            for index, observer in enumerate(observers)
        ]
        self._record = RunRecord(workers=workers, requests=[])
        self._running: dict[SequenceState, RequestRecord] = {}
        self._unplaced: dict[int, TokenArray] = {}
        self._requests: Sequence[TraceRequest] = ()
        self._times_s: Sequence[float] = ()

    def run(self, requests: Sequence[TraceRequest], times_s: Sequence[float]) -> RunRecord:
        """Lets the requests arrive at `times_s`, which ascend; returns when the last has ended."""
        self._requests, self._times_s = requests, times_s
        self._loop.at(times_s[0], self._arrive)
        self._loop.run()
        self._record.preemptions = sum(worker.scheduler.preemptions for worker in self._workers)
        return self._record

    def _arrive(self, now_s: float) -> None:
        """All that arrive at this time."""
        times_s, records = self._times_s, self._record.requests
        while len(records) < len(times_s):
            request_id = len(records)
            if times_s[request_id] > now_s:
                self._loop.at(times_s[request_id], self._arrive)
                break
            request = self._requests[request_id]
            records.append(RequestRecord(request_id=request_id, arrival_s=now_s, prompt_tokens=request.prompt_tokens))
            token_ids = self._unplaced[request_id] = request.prompt(self._trace_block_size)
            self._router.submit(request_id, token_ids, now_s)
        self._start_placed(now_s)

    def _start_placed(self, now_s: float) -> None:
        for request_id, worker in self._router.take_placed():
            record = self._record.requests[request_id]
            record.worker, record.placed_s = worker, now_s
            request = PreprocessedRequest(
                model="simulated",
                token_ids=self._unplaced.pop(request_id),
                sampling_options=SamplingOptions(seed=request_id),  # each says something else
                stop_conditions=StopConditions(max_tokens=self._requests[request_id].output_tokens, ignore_eos=True),
            )
            self._running[self._workers[worker].submit(request, now_s)] = record

    def _step_ended(self, worker: SimulatedWorker, step: StepResult, now_s: float) -> None:
        if self._cache_events:
            events = self._cache_events[worker.index].take()
            if events:
                batch = KvEventBatch(0, events)
                self._loop.at(now_s + self._event_latency_s, partial(self._tell_router, worker.index, batch))
        self._deliver(step, worker.step_began_s, now_s)
        self._start_placed(now_s)

    def _deliver(self, step: StepResult, began_s: float, now_s: float) -> None:
        """Notes down what a step has yielded, and tells the router. This loop is the hot path."""
        running, block_size = self._running, self._block_size
        steady = 0  # those whose last token came when the step began
        for sequence, output in step.outputs.items():
            record = running[sequence]
            if record.last_token_s == began_s and record.output_tokens:
                steady += 1
            elif record.output_tokens:  # after a preemption
                self._record.gaps.add(now_s - record.last_token_s)
            else:
                self._first_token(record, output.cached_tokens or 0, now_s)
            record.last_token_s = now_s
            record.output_tokens += 1
            if not record.output_tokens % block_size:
                self._router.output(record.request_id, block_size, now_s)
            if output.finish_reason is not None:
                record.finished = True
                del running[sequence]
                self._router.free(record.request_id, now_s)
        if steady:
            self._record.gaps.add(step.duration_s, steady)

    def _first_token(self, record: RequestRecord, cached_tokens: int, now_s: float) -> None:
        record.first_token_s = now_s
        record.cached_tokens = cached_tokens
        self._router.first_token(record.request_id, now_s)

    def _tell_router(self, worker: int, batch: KvEventBatch, now_s: float) -> None:
        self._router.cache_changed(worker, batch)
