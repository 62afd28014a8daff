"""A router and its workers in virtual time."""

from collections.abc import Mapping, Sequence
from functools import partial

from dynamo.clock import VirtualClock
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.tiers_config import TiersConfig
from dynamo.engines.mocker.timing import TimingModel
from dynamo.llm.continuation import Continuation
from dynamo.protocols.generation import PreprocessedRequest, SamplingOptions, StopConditions
from dynamo.protocols.model_card import WorkerType
from dynamo.simulator.event_loop import EventLoop
from dynamo.simulator.journal import Journal
from dynamo.simulator.pool import EVENT_LATENCY_S, Pool
from dynamo.simulator.record import RunRecord
from dynamo.simulator.router_core import RouterCore
from dynamo.simulator.trace import BLOCK_SIZE, TraceRequest
from dynamo.simulator.worker import SimulatedWorker
from dynamo.tokens import TokenArray


class Cluster:
    """Sends requests through a router to workers, and notes down what becomes of them. Good for one run."""

    def __init__(
        self,
        router: RouterCore,
        workers: int,
        engine: SchedulerConfig,
        timing: TimingModel,
        *,
        event_latency_s: float = EVENT_LATENCY_S,
        trace_block_size: int = BLOCK_SIZE,
        tiers: TiersConfig | None = None,
    ) -> None:
        """`event_latency_s`: after which time the router knows of a change in a cache. `tiers`: of each worker."""
        self._trace_block_size = trace_block_size
        self.loop = EventLoop(VirtualClock())
        self.journal = Journal(router, workers, engine.block_size)
        self._pool = Pool(
            router,
            workers,
            engine,
            timing,
            self.loop,
            started=self.journal.started,
            step_ended=self.journal.step_ended,
            event_latency_s=event_latency_s,
            tiers=tiers,
        )
        self._requests: Sequence[TraceRequest] = ()

    @property
    def pools(self) -> Mapping[WorkerType, Pool[RouterCore]]:
        """Its workers."""
        return {WorkerType.Aggregated: self._pool}

    def run(self, requests: Sequence[TraceRequest], times_s: Sequence[float]) -> RunRecord:
        """Lets the requests arrive at `times_s`, which ascend; returns when the last has ended."""
        self._requests = requests
        for request_id, time_s in zip(range(len(requests)), times_s, strict=True):
            self.loop.at(time_s, partial(self._arrive, request_id))
        self.loop.run()
        self.journal.record.preemptions = self._pool.preemptions
        self.journal.record.reused_blocks = self._pool.reused_blocks
        return self.journal.record

    def kill(self, role: WorkerType, worker: SimulatedWorker, now_s: float) -> None:
        """Other workers go on with what it had."""
        lost = self.journal.take_from(worker)
        self.pools[role].kill(worker, now_s)
        for request_id, said in lost:
            self._pool.submit(request_id, continued(self._request(request_id), said), now_s)

    def pending_tokens(self, role: WorkerType) -> Mapping[int, int]:
        """Of prompts without an output yet, by worker."""
        return self.journal.pending_tokens()

    def _arrive(self, request_id: int, now_s: float) -> None:
        request = self._request(request_id)
        self.journal.arrived(request_id, len(request.token_ids), now_s)
        self._pool.submit(request_id, request, now_s)

    def _request(self, request_id: int) -> PreprocessedRequest:
        return preprocessed(request_id, self._requests[request_id], self._trace_block_size)


def preprocessed(request_id: int, request: TraceRequest, trace_block_size: int) -> PreprocessedRequest:
    """What a worker gets of a request of a trace."""
    return PreprocessedRequest(
        model="simulated",
        token_ids=request.prompt(trace_block_size),
        sampling_options=SamplingOptions(seed=request_id),  # each says something else
        stop_conditions=StopConditions(max_tokens=request.output_tokens, ignore_eos=True),
    )


def continued(request: PreprocessedRequest, said: TokenArray) -> PreprocessedRequest:
    """What the next worker gets of a request of which another has made `said` before it was lost."""
    continuation = Continuation(request)
    continuation.generated += said
    continuation.begun = bool(said)
    return continuation.request()
