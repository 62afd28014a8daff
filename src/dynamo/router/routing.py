"""What the KV scheduler is asked, and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass, field

from dynamo.protocols.generation import WorkerId
from dynamo.router.radix_tree import Overlap
from dynamo.tokens import HASH_SEED, HashArray, TokenArray, hash_array


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """What a worker was started with, as far as it says so."""

    max_num_batched_tokens: int | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class RoutingRequest:
    """A prompt that needs a worker."""

    request_id: str
    token_ids: TokenArray
    seed: int = HASH_SEED  # of the block hashes: dynamo.tokens.block_seed
    priority: float = 0.0  # seconds of head start in the queue
    session_id: str | None = None
    prefilled: bool = False  # elsewhere: what a worker has cached of it is of no use
    explain: bool = False  # whether the decision names its candidates
    eligible: Callable[[WorkerId], bool] | None = None  # which workers may serve it; None: all
    hashes: HashArray = field(default_factory=hash_array)  # of its blocks; filled in by the scheduler
    arrived_s: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worker that could have been chosen, and why it was or was not."""

    worker: WorkerId
    cost: float
    overlap: Overlap
    prefill_tokens: int  # that it has yet to prefill, this request not included; foreign ones are, here and below
    decode_blocks: int  # that its running sequences hold
    has_too_many: bool  # requests: it is passed over where another may serve


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingDecision:
    """Where a request goes."""

    request_id: str
    worker: WorkerId
    overlap: Overlap
    prompt_blocks: int  # full ones
    cost: float
    mean_cost: float  # of all candidates
    queued_s: float = 0.0
    no_overlap_reason: str | None = None  # where the overlap is 0
    candidates: tuple[Candidate, ...] = ()
