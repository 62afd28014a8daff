"""What becomes of requests, noted down step by step."""

from dynamo.engines.mocker.scheduler import StepResult
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.simulator.record import RequestRecord, RunRecord
from dynamo.simulator.router_core import RouterCore
from dynamo.simulator.worker import SimulatedWorker


class Journal:
    """Looks at the steps of the workers that answer, and tells their router of what it sees."""

    def __init__(self, router: RouterCore, workers: int, block_size: int) -> None:
        """`workers`: of all kinds. `block_size` in tokens: by so many the router is told of an answer."""
        self.record = RunRecord(workers=workers, requests=[])
        self._router = router
        self._block_size = block_size
        self._running: dict[SequenceState, RequestRecord] = {}

    def arrived(self, request_id: int, prompt_tokens: int, now_s: float) -> RequestRecord:
        """Requests arrive in the order of their ids, which count from 0."""
        record = RequestRecord(request_id=request_id, arrival_s=now_s, prompt_tokens=prompt_tokens)
        self.record.requests.append(record)
        return record

    def started(self, request_id: int, worker: SimulatedWorker, sequence: SequenceState, now_s: float) -> None:
        """A worker has got the request that it is going to answer."""
        record = self.record.requests[request_id]
        record.worker, record.placed_s = worker.index, now_s
        self._running[sequence] = record

    def request_of(self, sequence: SequenceState) -> RequestRecord:
        """That a worker is answering."""
        return self._running[sequence]

    def step_ended(self, worker: SimulatedWorker, step: StepResult, now_s: float) -> None:
        """Takes what the step has yielded. This loop is the hot path."""
        running, block_size, began_s = self._running, self._block_size, worker.step_began_s
        steady = 0  # those whose last token came when the step began
        for sequence, output in step.outputs.items():
            record = running[sequence]
            if record.last_token_s == began_s and record.output_tokens:
                steady += 1
            elif record.output_tokens:  # after a preemption
                self.record.gaps.add(now_s - record.last_token_s)
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
            self.record.gaps.add(step.duration_s, steady)

    def _first_token(self, record: RequestRecord, cached_tokens: int, now_s: float) -> None:
        record.first_token_s = now_s
        if record.prefill is None or not record.prefill.remote:  # else the prefill worker has told
            record.cached_tokens = cached_tokens
        self._router.first_token(record.request_id, now_s)
