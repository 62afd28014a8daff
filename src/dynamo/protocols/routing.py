"""What a router is told with a request beside its tokens, and how it explains its choice."""

from typing import Annotated

import msgspec

from dynamo.tokens import TokenArray

SESSION_ID = "session_id"  # in a Context's metadata: the session that the client says its request belongs to

Priority = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]  # seconds of head start in a router's queue


class CandidateReport(msgspec.Struct, frozen=True, kw_only=True):
    """One worker that could have had the request. Counts are in KV blocks, but for `prefill_tokens`."""

    worker_id: int  # the instance id
    dp_rank: int
    cost: float  # the lowest wins
    device_blocks: int  # of the prompt, that lie in the worker's cache on each tier
    host_blocks: int
    disk_blocks: int
    prefill_tokens: int  # that it has yet to compute for requests before this one, of whoever has sent them
    decode_blocks: int  # that its running requests hold, likewise


class RoutingReport(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request went where it did. It stands in the answer as it is, defaults included."""

    mode: str
    worker_id: int  # the instance id
    dp_rank: int
    prompt_blocks: int  # full ones
    block_size: int  # tokens
    overlap_blocks: int  # of the prompt, that the chosen worker had
    queued_ms: float = 0
    no_overlap_reason: str | None = None  # where overlap_blocks is 0
    candidates: list[CandidateReport] = []


class Prospect(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt would find at the worker that it would be given now, in tokens."""

    cached_tokens: int  # of the prompt
    waiting_tokens: int  # that the worker has to prefill before


class BestWorkerRequest(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What `python -m dynamo.router` is asked at its endpoint `best_worker`; it answers with a RoutingReport.

    With a `request_id` the request counts as its worker's load from now on, until `free` is told of the same id.
    """

    token_ids: TokenArray
    request_id: str | None = None
    cache_salt: str | None = None
    lora_name: str | None = None
    priority: Priority = 0
    session_id: str | None = None


class RequestIdMessage(msgspec.Struct, kw_only=True):
    """What its endpoints `mark_prefill_complete` and `free` are told."""

    request_id: str


class PotentialLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker would be busy with if it were given a prompt. `get_potential_loads` answers with one for each."""

    worker_id: int
    dp_rank: int
    potential_prefill_tokens: int
    potential_decode_blocks: int
