"""What the workers are busy with, as far as the router has sent it to them. Pure.

A request's prompt is prefill load until its first token, less what the worker had cached. Its blocks are decode load
from the start to the end, and become more with its output.
"""

from collections import OrderedDict
from dataclasses import dataclass

from dynamo.protocols.generation import WorkerId


@dataclass(slots=True, kw_only=True, eq=False)
class WorkerActivity:
    """The sum over a worker's sequences."""

    requests: int = 0
    prefill_tokens: int = 0
    blocks: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class ActiveSequence:
    """One request on its worker."""

    worker: WorkerId
    activity: WorkerActivity
    prefill_tokens: int  # 0 from the first token on
    blocks: int
    room: int  # tokens that fit into its last block
    source: str  # which router has sent it
    seen_s: float


class ActiveSequences:
    """The sequences of one model's workers. Ids that are not known, or no longer, are passed over."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._sequences: OrderedDict[str, ActiveSequence] = OrderedDict()  # the one not seen for longest first
        self._activities: dict[WorkerId, WorkerActivity] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._sequences

    def activity(self, worker: WorkerId) -> WorkerActivity:
        """The live sum; not to be changed by others."""
        activity = self._activities.get(worker)
        if activity is None:
            activity = self._activities[worker] = WorkerActivity()
        return activity

    def add(
        self,
        request_id: str,
        worker: WorkerId,
        *,
        prompt_tokens: int,
        prefill_tokens: int,
        now_s: float,
        source: str = "",
    ) -> None:
        """The request goes to `worker`, which has to prefill `prefill_tokens` of the prompt."""
        self.free(request_id)
        activity = self.activity(worker)
        blocks = -(-prompt_tokens // self._block_size)
        self._sequences[request_id] = ActiveSequence(
            worker=worker,
            activity=activity,
            prefill_tokens=prefill_tokens,
            blocks=blocks,
            room=blocks * self._block_size - prompt_tokens,
            source=source,
            seen_s=now_s,
        )
        activity.requests += 1
        activity.prefill_tokens += prefill_tokens
        activity.blocks += blocks

    def first_token(self, request_id: str, now_s: float) -> bool:
        """The prompt is prefilled; whether that is news."""
        sequence = self._sequences.get(request_id)
        if sequence is None or not sequence.prefill_tokens:
            return False
        sequence.activity.prefill_tokens -= sequence.prefill_tokens
        sequence.prefill_tokens = 0
        self._seen(request_id, sequence, now_s)
        return True

    def output(self, request_id: str, tokens: int, now_s: float) -> None:
        """The sequence has grown."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return
        sequence.room -= tokens
        if sequence.room < 0:
            blocks = -(sequence.room // self._block_size)
            sequence.room += blocks * self._block_size
            sequence.blocks += blocks
            sequence.activity.blocks += blocks
            self._seen(request_id, sequence, now_s)

    def free(self, request_id: str) -> bool:
        """The request has ended; whether it was known."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return False
        activity = sequence.activity
        activity.requests -= 1
        activity.prefill_tokens -= sequence.prefill_tokens
        activity.blocks -= sequence.blocks
        return True

    def sweep(self, before_s: float) -> list[str]:
        """Frees the requests that were last seen before that time, and returns them."""
        stale: list[str] = []
        for request_id, sequence in self._sequences.items():
            if sequence.seen_s >= before_s:
                break
            stale.append(request_id)
        for request_id in stale:
            self.free(request_id)
        return stale

    def drop_worker(self, worker: WorkerId) -> None:
        """The worker is gone, and its sequences with it."""
        for request_id in [i for i, s in self._sequences.items() if s.worker == worker]:
            self.free(request_id)
        self._activities.pop(worker, None)

    def drop_source(self, source: str) -> None:
        """The router that had sent these is gone; its requests are cancelled."""
        for request_id in [i for i, s in self._sequences.items() if s.source == source]:
            self.free(request_id)

    def of_source(self, source: str) -> list[tuple[str, ActiveSequence]]:
        """What that router has sent."""
        return [(i, s) for i, s in self._sequences.items() if s.source == source]

    def _seen(self, request_id: str, sequence: ActiveSequence, now_s: float) -> None:
        sequence.seen_s = now_s
        self._sequences.move_to_end(request_id)
