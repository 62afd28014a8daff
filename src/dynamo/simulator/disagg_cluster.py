"""Prefill workers and decode workers, each with a router of their own, in virtual time."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from dynamo.clock import VirtualClock
from dynamo.engines.mocker.scheduler import StepResult
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.engines.mocker.timing import TimingModel
from dynamo.engines.mocker.transfer_model import Link, TransferModel
from dynamo.protocols.disagg import Handoff, PrefillReason
from dynamo.protocols.generation import PreprocessedRequest
from dynamo.protocols.model_card import WorkerType
from dynamo.router.disagg import DisaggConfig, choose_prefill
from dynamo.router.prefill_leg import prefill_request
from dynamo.simulator.cluster import continued, preprocessed
from dynamo.simulator.event_loop import EventLoop
from dynamo.simulator.journal import Journal, Lost
from dynamo.simulator.kv_core import KvCore
from dynamo.simulator.pool import EVENT_LATENCY_S, Pool
from dynamo.simulator.record import RunRecord
from dynamo.simulator.trace import BLOCK_SIZE, TraceRequest
from dynamo.simulator.worker import SimulatedWorker

HANDOFF_LATENCY_S = 0.0005  # from the end of a prefill to the decode worker: two hops and a decision

_HANDOFF = Handoff(engine="simulated", params=b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Workers of one kind."""

    router: KvCore
    workers: int
    engine: SchedulerConfig


class DisaggCluster:
    """Does what PrefillRouter and the workers of the two kinds do. Good for one run."""

    def __init__(
        self,
        config: DisaggConfig,
        prefill: Fleet,
        decode: Fleet,
        timing: TimingModel,
        transfer: TransferModel,
        *,
        handoff_latency_s: float = HANDOFF_LATENCY_S,
        event_latency_s: float = EVENT_LATENCY_S,
        trace_block_size: int = BLOCK_SIZE,
    ) -> None:
        """`event_latency_s`: after which time a router knows of a change in a cache."""
        self._config = config
        self._transfer = transfer
        self._handoff_latency_s = handoff_latency_s
        self._trace_block_size = trace_block_size
        self.loop = EventLoop(VirtualClock())
        self.journal = Journal(decode.router, prefill.workers + decode.workers, decode.engine.block_size)
        self._prefill = Pool(
            prefill.router,
            prefill.workers,
            prefill.engine,
            timing,
            self.loop,
            started=self._prefill_started,
            step_ended=self._prefill_step_ended,
            event_latency_s=event_latency_s,
        )
        self._decode = Pool(
            decode.router,
            decode.workers,
            decode.engine,
            timing,
            self.loop,
            started=self.journal.started,
            step_ended=self.journal.step_ended,
            step_began=self._decode_step_began,
            event_latency_s=event_latency_s,
        )
        self._prefill_links: defaultdict[int, Link] = defaultdict(Link)  # by worker
        self._decode_links: defaultdict[int, Link] = defaultdict(Link)
        self._requests: Sequence[TraceRequest] = ()
        self._whole: dict[int, PreprocessedRequest] = {}  # by id: those of which prefill workers do their part
        self._ids: dict[SequenceState, int] = {}  # of what is with prefill workers
        self._holders: dict[int, tuple[SimulatedWorker, SequenceState]] = {}  # by id: until all has been fetched

    def run(self, requests: Sequence[TraceRequest], times_s: Sequence[float]) -> RunRecord:
        """Lets the requests arrive at `times_s`, which ascend; returns when the last has ended."""
        self._requests = requests
        for request_id, time_s in zip(range(len(requests)), times_s, strict=True):
            self.loop.at(time_s, partial(self._arrive, request_id))
        self.loop.run()
        self.journal.record.preemptions = self._prefill.preemptions + self._decode.preemptions
        return self.journal.record

    @property
    def pools(self) -> Mapping[WorkerType, Pool[KvCore]]:
        """Its workers."""
        return {WorkerType.Prefill: self._prefill, WorkerType.Decode: self._decode}

    def kill(self, role: WorkerType, worker: SimulatedWorker, now_s: float) -> None:
        """Other workers go on with what it had; what it had prefilled is prefilled again when somebody misses it."""
        if role is WorkerType.Prefill:
            lost = self._take_from_prefill(worker)
        else:
            lost = self.journal.take_from(worker)
            for request_id, _ in lost:
                self._release(request_id, now_s)
        self.pools[role].kill(worker, now_s)
        for request_id, said in lost:
            self._route(request_id, continued(self._request(request_id), said), now_s)

    def pending_tokens(self, role: WorkerType) -> Mapping[int, int]:
        """Of prompts without an output yet, by worker; of one that was prefilled elsewhere, the last one only."""
        if role is WorkerType.Decode:
            return self.journal.pending_tokens()
        tokens = Counter[int]()
        for sequence, request_id in self._ids.items():
            tokens[self._holders[request_id][0].index] += len(sequence.prompt)
        return tokens

    @property
    def held(self) -> int:
        """Prompts that prefill workers prefill, or hold for those that have not fetched them yet."""
        return len(self._holders)

    def _arrive(self, request_id: int, now_s: float) -> None:
        request = self._request(request_id)
        self.journal.arrived(request_id, len(request.token_ids), now_s)
        self._route(request_id, request, now_s)

    def _request(self, request_id: int) -> PreprocessedRequest:
        return preprocessed(request_id, self._requests[request_id], self._trace_block_size)

    def _route(self, request_id: int, request: PreprocessedRequest, now_s: float) -> None:
        self.journal.record.requests[request_id].prefill = reason = self._plan(request, now_s)
        if reason.remote:
            self._whole[request_id] = request
            self._prefill.submit(request_id, prefill_request(request), now_s)
        else:
            self._decode.submit(request_id, request, now_s)

    def _plan(self, request: PreprocessedRequest, now_s: float) -> PrefillReason:
        """Where the prompt is to be prefilled."""
        if not self._prefill.workers:
            return PrefillReason.NO_PREFILL_WORKER
        if not self._config.conditional_disagg or not self._decode.workers:
            return PrefillReason.UNCONDITIONAL
        prompt_tokens = len(request.token_ids)
        uncached_tokens = waiting_tokens = None
        if self._config.minds_cache:
            uncached_tokens = prompt_tokens - self._decode.router.prospect(request.token_ids, now_s).cached_tokens
        if self._config.minds_load:
            waiting_tokens = self._prefill.router.prospect(request.token_ids, now_s).waiting_tokens
        return choose_prefill(
            self._config, prompt_tokens=prompt_tokens, uncached_tokens=uncached_tokens, waiting_tokens=waiting_tokens
        )

    def _prefill_started(self, request_id: int, worker: SimulatedWorker, sequence: SequenceState, now_s: float) -> None:
        self._ids[sequence] = request_id
        self._holders[request_id] = worker, sequence

    def _prefill_step_ended(self, worker: SimulatedWorker, step: StepResult, now_s: float) -> None:
        for sequence, output in step.outputs.items():
            request_id = self._ids.pop(sequence)
            record = self.journal.record.requests[request_id]
            if not record.output_tokens:  # else it was prefilled before
                record.cached_tokens = output.cached_tokens or 0
            self._prefill.router.first_token(request_id, now_s)
            self._prefill.router.free(request_id, now_s)
            request = msgspec.structs.replace(self._whole.pop(request_id), handoff=_HANDOFF)
            self.loop.at(now_s + self._handoff_latency_s, partial(self._decode.submit, request_id, request))

    def _decode_step_began(self, worker: SimulatedWorker, step: StepResult, now_s: float) -> None:
        for sequence, tokens in step.receiving.items():
            request_id = self.journal.running[sequence].request_id
            if not tokens:
                self._release(request_id, now_s)
            elif request_id not in self._holders:
                self._start_again(worker, sequence, now_s)
            else:
                ends = (self._prefill_links[self._holders[request_id][0].index], self._decode_links[worker.index])
                end_s = max(self._transfer.begin(tokens, now_s, link) for link in ends)
                self.loop.at(end_s, partial(self._received, request_id, worker, sequence))

    def _received(self, request_id: int, worker: SimulatedWorker, sequence: SequenceState, now_s: float) -> None:
        if sequence not in self.journal.running:  # its worker is gone
            return
        if request_id not in self._holders:
            self._start_again(worker, sequence, now_s)
            return
        worker.received(sequence, now_s)
        self._release(request_id, now_s)

    def _release(self, request_id: int, now_s: float) -> None:
        """Nobody is going to fetch what a prefill worker may hold."""
        holder, held = self._holders.pop(request_id, (None, None))
        if holder is not None and held is not None:
            holder.release(held, now_s)

    def _start_again(self, worker: SimulatedWorker, sequence: SequenceState, now_s: float) -> None:
        """The prefill worker is gone that holds what a decode worker wants to fetch."""
        request_id, said = self.journal.take(sequence)
        worker.abort(sequence, now_s)
        self._route(request_id, continued(self._request(request_id), said), now_s)

    def _take_from_prefill(self, worker: SimulatedWorker) -> list[Lost]:
        """What it prefills; nobody finds any more what it holds."""
        held = [(request_id, sequence) for request_id, (holder, sequence) in self._holders.items() if holder is worker]
        lost: list[Lost] = []
        for request_id, sequence in held:
            del self._holders[request_id]
            if self._ids.pop(sequence, None) is not None:
                lost.append(Lost(request_id, self._whole.pop(request_id).token_ids[self._prompt_tokens(request_id) :]))
        return lost

    def _prompt_tokens(self, request_id: int) -> int:
        return self.journal.record.requests[request_id].prompt_tokens
