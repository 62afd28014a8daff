"""What a prefill worker gives to the decode worker that goes on with the prompt, and how a router explains it."""

from enum import StrEnum

import msgspec

from dynamo.protocols.routing import RoutingReport


class Handoff(msgspec.Struct, frozen=True, kw_only=True):
    """Where the KV cache of a prefilled prompt lies, and how to get it. Good for one decode.

    Whoever has fetched the cache tells its holder, which frees it then; by itself it frees it after a while. So nobody
    may take it twice: what is there the second time may be another prompt's.
    """

    engine: str  # whose `params` these are: a worker with another engine cannot use them
    params: bytes  # the engines' own business


class PrefillReason(StrEnum):
    """Why a prompt was prefilled where it was."""

    # By a prefill worker
    UNCONDITIONAL = "unconditional"  # all are
    CONDITIONS_NOT_MET = "conditions_not_met"  # for prefilling it where it is decoded
    # Where it was decoded
    NO_PREFILL_WORKER = "no_prefill_worker"
    NO_DECODE_WORKER = "no_decode_worker"  # only such as do all of each request
    PROMPT_LOGPROBS = "prompt_logprobs"  # they come from the prefill
    SHORT = "short"  # few tokens of it were not cached there
    PREFILL_BUSY = "prefill_busy"  # it would have waited for a prefill worker
    PREFILL_FAILED = "prefill_failed"
    HANDOFF_LOST = "handoff_lost"  # prefilled in vain: the decode worker, or the holder of the KV cache, failed

    @property
    def remote(self) -> bool:
        return self in (PrefillReason.UNCONDITIONAL, PrefillReason.CONDITIONS_NOT_MET)


class DisaggReport(msgspec.Struct, frozen=True, kw_only=True):
    """Where a prompt was prefilled, and why. It stands in the answer as it is, defaults included."""

    prefill: str  # "remote" or "local"
    reason: PrefillReason
    prompt_tokens: int
    uncached_tokens: int | None = None  # of them, where it would be decoded; None: nobody asked, as in the next one
    waiting_tokens: int | None = None  # that its prefill worker would have to prefill before it
    worker_id: int | None = None  # the prefill worker, an instance id; None: it has not answered
    prefill_ms: float | None = None  # until decode could begin
    routing: RoutingReport | None = None  # why that prefill worker
