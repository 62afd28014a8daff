"""What becomes of requests, noted down step by step."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from dynamo.engines.mocker.scheduler import StepResult
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.protocols.traffic import ModelTraffic
from dynamo.simulator.record import RequestRecord, RunRecord
from dynamo.simulator.router_core import RouterCore
from dynamo.simulator.worker import SimulatedWorker
from dynamo.tokens import TokenArray, token_array


class Lost(NamedTuple):
    """A request whose worker is gone."""

    request_id: int
    said: TokenArray  # output so far, from all the workers that it has had


class Journal:
    """Looks at the steps of the workers that answer, and tells their router of what it sees."""

    def __init__(self, router: RouterCore, workers: int, block_size: int) -> None:
        """`workers`: of all kinds. `block_size` in tokens: by so many the router is told of an answer."""
        self.record = RunRecord(workers=workers, requests=[])
        self.traffic = ModelTraffic(model="simulated")
        self._router = router
        self._block_size = block_size
        self._running: dict[SequenceState, RequestRecord] = {}

    def arrived(self, request_id: int, prompt_tokens: int, now_s: float) -> RequestRecord:
        """Requests arrive in the order of their ids, which count from 0."""
        record = RequestRecord(request_id=request_id, arrival_s=now_s, prompt_tokens=prompt_tokens)
        self.record.requests.append(record)
        self.traffic.arrived_requests += 1
        self.traffic.prompts += 1
        self.traffic.prompt_tokens += prompt_tokens
        return record

    def started(self, request_id: int, worker: SimulatedWorker, sequence: SequenceState, now_s: float) -> None:
        """A worker has got the request that it is going to answer."""
        record = self.record.requests[request_id]
        record.worker, record.placed_s = worker.index, now_s
        self._running[sequence] = record

    @property
    def unfinished(self) -> int:
        """Requests that have arrived and not ended."""
        return self.traffic.arrived_requests - self.traffic.finished_requests

    @property
    def running(self) -> Mapping[SequenceState, RequestRecord]:
        """What workers are answering, by what it is to them, in the order in which they got it."""
        return self._running

    def take(self, sequence: SequenceState) -> Lost:
        """A worker does not answer it any more; another one is going to."""
        record = self._running.pop(sequence)
        before = len(sequence.prompt) - record.prompt_tokens  # said by workers that were lost earlier
        said = sequence.prompt[record.prompt_tokens :] + token_array(
            sequence.script.tokens(0, record.output_tokens - before)
        )
        return Lost(record.request_id, said)

    def take_from(self, worker: SimulatedWorker) -> list[Lost]:
        """Likewise, all that the worker answers."""
        lost = [sequence for sequence, record in self._running.items() if record.worker == worker.index]
        return [self.take(sequence) for sequence in lost]

    def pending_tokens(self) -> Counter[int]:
        """Of prompts without an output yet, by worker; of one that was prefilled elsewhere, the last one only."""
        tokens = Counter[int]()
        for record in self._running.values():
            if not record.output_tokens:
                remote = record.prefill is not None and record.prefill.remote
                tokens[record.worker] += 1 if remote else record.prompt_tokens
        return tokens

    def step_ended(self, worker: SimulatedWorker, step: StepResult, now_s: float) -> None:
        """Takes what the step has yielded. This loop is the hot path."""
        running, block_size, began_s = self._running, self._block_size, worker.step_began_s
        steady = 0  # those whose last token came when the step began
        for sequence, output in step.outputs.items():
            record = running[sequence]
            if record.last_token_s == began_s and record.output_tokens:
                steady += 1
            elif record.output_tokens:  # after a preemption, or on another worker
                self._gaps(now_s - record.last_token_s, 1)
            else:
                self._first_token(record, output.cached_tokens or 0, now_s)
            record.last_token_s = now_s
            record.output_tokens += 1
            if not record.output_tokens % block_size:
                self._router.output(record.request_id, block_size, now_s)
            if output.finish_reason is not None:
                record.finished = True
                del running[sequence]
                self.traffic.finished_requests += 1
                self.traffic.output_tokens += record.output_tokens
                self._router.free(record.request_id, now_s)
        if steady:
            self._gaps(step.duration_s, steady)

    def _gaps(self, gap_s: float, times: int) -> None:
        self.record.gaps.add(gap_s, times)
        self.traffic.gaps += times
        self.traffic.itl_s += gap_s * times

    def _first_token(self, record: RequestRecord, cached_tokens: int, now_s: float) -> None:
        record.first_token_s = now_s
        if record.prefill is None or not record.prefill.remote:  # else the prefill worker has told
            record.cached_tokens = cached_tokens
        self.traffic.first_tokens += 1
        self.traffic.ttft_s += record.ttft_s
        self.traffic.cached_tokens += record.cached_tokens
        self._router.first_token(record.request_id, now_s)
