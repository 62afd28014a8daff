"""What the workers are busy with: what routers have sent to them, and beside it what they say of themselves. Pure.

A request's prompt is prefill load until its first token, less what the worker had cached. Its blocks are decode load
from the start to the end, and become more with its output. Blocks of a prompt that several requests of a worker share
are held there once, and so counted once.
"""

from dataclasses import dataclass

from dynamo.protocols.generation import WorkerId
from dynamo.router.active_blocks import ActiveBlocks, Hold
from dynamo.router.radix_tree import MAX_BLOCKS, OverlapScores
from dynamo.tokens import HashArray, hash_array


@dataclass(slots=True, kw_only=True, eq=False)
class WorkerActivity:
    """The sum over a worker's sequences and what it has beside them, which is called foreign."""

    worker: WorkerId
    requests: int = 0
    prefill_tokens: int = 0
    pending_prompt_tokens: int = 0  # of sequences without a token yet, what was cached included
    blocks: int = 0
    foreign_requests: int = 0  # of these, that no router has told of
    foreign_prefill_tokens: int = 0
    foreign_blocks: int = 0
    requests_peak: int = 0  # of its sequences since reset_peaks(), and the foreign ones of now
    pending_prompt_tokens_peak: int = 0
    blocks_peak: int = 0
    watched: bool = False  # kept while idle

    def grown(self) -> None:
        """The sums are higher than they were, and so may be their peaks."""
        if self.requests > self.requests_peak:
            self.requests_peak = self.requests
        if self.pending_prompt_tokens > self.pending_prompt_tokens_peak:
            self.pending_prompt_tokens_peak = self.pending_prompt_tokens
        if self.blocks > self.blocks_peak:
            self.blocks_peak = self.blocks

    def reset_peaks(self) -> None:
        self.requests_peak = self.requests
        self.pending_prompt_tokens_peak = self.pending_prompt_tokens
        self.blocks_peak = self.blocks


@dataclass(slots=True, kw_only=True, eq=False)
class ActiveSequence:
    """One request on its worker."""

    activity: WorkerActivity  # of its worker
    prefill_tokens: int  # 0 from the first token on
    pending_prompt_tokens: int  # likewise
    tokens: int  # of prompt and output
    hold: Hold  # on the blocks of its prompt that have names
    own_blocks: int  # that hold the other tokens
    source: str  # which router has sent it
    seen_s: float

    @property
    def worker(self) -> WorkerId:
        return self.activity.worker


class ActiveSequences:
    """The sequences of one model's workers. Ids that are not known, or no longer, are passed over."""

    def __init__(self, block_size: int, max_blocks: int = MAX_BLOCKS) -> None:
        self._block_size = block_size
        self._active = ActiveBlocks(max_blocks)
        self._sequences: dict[str, ActiveSequence] = {}
        self._activities: dict[WorkerId, WorkerActivity] = {}
        self._foreign_requests = 0

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def requests(self) -> int:
        """Of all workers, foreign ones included."""
        return len(self._sequences) + self._foreign_requests

    @property
    def active_blocks(self) -> int:
        """Different blocks of running requests' prompts."""
        return len(self._active)

    def find_active(self, hashes: HashArray) -> OverlapScores:
        """How many blocks of a prompt running requests use on each worker."""
        return self._active.find_matches(hashes)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._sequences

    def get(self, request_id: str) -> ActiveSequence | None:
        """Not to be changed by others."""
        return self._sequences.get(request_id)

    def watch(self, worker: WorkerId) -> WorkerActivity:
        """The worker's live sum, until drop_worker(); not to be changed by others."""
        activity = self._activity(worker)
        activity.watched = True
        return activity

    def add(
        self,
        request_id: str,
        worker: WorkerId,
        *,
        prompt_tokens: int,
        prefill_tokens: int,
        now_s: float,
        hashes: HashArray | None = None,
        prefilled: bool = False,
        source: str = "",
    ) -> None:
        """The request goes to `worker`, which has to prefill `prefill_tokens` of the prompt.

        `prefilled`: another worker has, so that this one does not tell of it as a prompt that waits. `hashes` names the
        prompt's full blocks; without them all its blocks count as its own. An id that is known already goes to its new
        worker.
        """
        self.free(request_id)
        activity = self._activity(worker)
        hold = self._active.hold(worker, hash_array() if hashes is None else hashes)
        own_blocks = -(-prompt_tokens // self._block_size) - len(hold.hashes)
        # What the worker counts until the first token; 0 where a router has told of the request after that.
        pending_prompt_tokens = min(prefill_tokens, 1) if prefilled else prompt_tokens if prefill_tokens else 0
        self._sequences[request_id] = ActiveSequence(
            activity=activity,
            prefill_tokens=prefill_tokens,
            pending_prompt_tokens=pending_prompt_tokens,
            tokens=prompt_tokens,
            hold=hold,
            own_blocks=own_blocks,
            source=source,
            seen_s=now_s,
        )
        activity.requests += 1
        activity.prefill_tokens += prefill_tokens
        activity.pending_prompt_tokens += pending_prompt_tokens
        activity.blocks += hold.fresh + own_blocks
        activity.grown()

    def first_token(self, request_id: str, now_s: float) -> ActiveSequence | None:
        """The prompt is prefilled; the sequence if that is news."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return None
        sequence.seen_s = now_s
        prefill_tokens, sequence.prefill_tokens = sequence.prefill_tokens, 0
        sequence.activity.prefill_tokens -= prefill_tokens
        sequence.activity.pending_prompt_tokens -= sequence.pending_prompt_tokens
        sequence.pending_prompt_tokens = 0
        return sequence if prefill_tokens > 0 else None

    def output(self, request_id: str, tokens: int, now_s: float) -> None:
        """The sequence has grown."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return
        sequence.seen_s = now_s
        sequence.tokens += tokens
        more = -(-sequence.tokens // self._block_size) - len(sequence.hold.hashes) - sequence.own_blocks
        if more:
            sequence.own_blocks += more
            sequence.activity.blocks += more
            sequence.activity.grown()

    def free(self, request_id: str) -> bool:
        """The request has ended; whether it was known."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return False
        activity = sequence.activity
        activity.requests -= 1
        activity.prefill_tokens -= sequence.prefill_tokens
        activity.pending_prompt_tokens -= sequence.pending_prompt_tokens
        activity.blocks -= sequence.own_blocks + self._active.release(sequence.hold)
        if not activity.requests and not activity.watched:
            del self._activities[activity.worker]
        return True

    def sweep(self, before_s: float) -> list[str]:
        """Frees the requests that were last seen before that time, and returns them."""
        return self._free_all([i for i, s in self._sequences.items() if s.seen_s < before_s])

    def sweep_worker(self, activity: WorkerActivity, before_s: float) -> list[str]:
        """The same for one worker's requests."""
        if not activity.requests:
            return []
        stale = [i for i, s in self._sequences.items() if s.activity is activity and s.seen_s < before_s]
        return self._free_all(stale)

    def set_foreign(self, activity: WorkerActivity, *, requests: int, prefill_tokens: int, blocks: int) -> None:
        """What that worker, which is watched, has beside the sequences from now on."""
        more_requests, more_blocks = requests - activity.foreign_requests, blocks - activity.foreign_blocks
        self._foreign_requests += more_requests
        activity.requests += more_requests
        activity.requests_peak += more_requests
        activity.prefill_tokens += prefill_tokens - activity.foreign_prefill_tokens
        activity.blocks += more_blocks
        activity.blocks_peak += more_blocks
        activity.foreign_requests, activity.foreign_prefill_tokens = requests, prefill_tokens
        activity.foreign_blocks = blocks

    def drop_worker(self, worker: WorkerId) -> list[str]:
        """The worker is gone, and with it its sequences, which are returned."""
        activity = self._activities.get(worker)
        if activity is None:
            return []
        dropped = self._free_all([i for i, s in self._sequences.items() if s.activity is activity])
        self.set_foreign(activity, requests=0, prefill_tokens=0, blocks=0)
        self._activities.pop(worker, None)
        self._active.remove_worker(worker)
        return dropped

    def drop_source(self, source: str) -> None:
        """The router that had sent these is gone; its requests are cancelled."""
        self._free_all([i for i, s in self._sequences.items() if s.source == source])

    def of_source(self, source: str) -> list[tuple[str, ActiveSequence]]:
        """What that router has sent."""
        return [(i, s) for i, s in self._sequences.items() if s.source == source]

    def _activity(self, worker: WorkerId) -> WorkerActivity:
        activity = self._activities.get(worker)
        if activity is None:
            activity = self._activities[worker] = WorkerActivity(worker=worker)
        return activity

    def _free_all(self, request_ids: list[str]) -> list[str]:
        for request_id in request_ids:
            self.free(request_id)
        return request_ids
