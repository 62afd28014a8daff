"""A router and its workers in virtual time."""

from collections.abc import Sequence
from functools import partial

from dynamo.clock import VirtualClock
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.tiers_config import TiersConfig
from dynamo.engines.mocker.timing import TimingModel
from dynamo.protocols.generation import PreprocessedRequest, SamplingOptions, StopConditions
from dynamo.simulator.event_loop import EventLoop
from dynamo.simulator.journal import Journal
from dynamo.simulator.pool import EVENT_LATENCY_S, Pool
from dynamo.simulator.record import RunRecord
from dynamo.simulator.router_core import RouterCore
from dynamo.simulator.trace import BLOCK_SIZE, TraceRequest


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
        self._loop = EventLoop(VirtualClock())
        self._journal = Journal(router, workers, engine.block_size)
        self._pool = Pool(
            router,
            workers,
            engine,
            timing,
            self._loop,
            started=self._journal.started,
            step_ended=self._journal.step_ended,
            event_latency_s=event_latency_s,
            tiers=tiers,
        )

    def run(self, requests: Sequence[TraceRequest], times_s: Sequence[float]) -> RunRecord:
        """Lets the requests arrive at `times_s`, which ascend; returns when the last has ended."""
        for request_id, (request, time_s) in enumerate(zip(requests, times_s, strict=True)):
            self._loop.at(time_s, partial(self._arrive, request_id, request))
        self._loop.run()
        self._journal.record.preemptions = self._pool.preemptions
        self._journal.record.reused_blocks = self._pool.reused_blocks
        return self._journal.record

    def _arrive(self, request_id: int, request: TraceRequest, now_s: float) -> None:
        self._journal.arrived(request_id, request.prompt_tokens, now_s)
        self._pool.submit(request_id, preprocessed(request_id, request, self._trace_block_size), now_s)


def preprocessed(request_id: int, request: TraceRequest, trace_block_size: int) -> PreprocessedRequest:
    """What a worker gets of a request of a trace."""
    return PreprocessedRequest(
        model="simulated",
        token_ids=request.prompt(trace_block_size),
        sampling_options=SamplingOptions(seed=request_id),  # each says something else
        stop_conditions=StopConditions(max_tokens=request.output_tokens, ignore_eos=True),
    )
