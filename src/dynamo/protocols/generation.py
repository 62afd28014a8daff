"""A request as an engine sees it, and what the engine answers: tokens in, tokens out."""

from enum import StrEnum
from typing import Any

import msgspec

from dynamo.protocols.disagg import DisaggReport, Handoff
from dynamo.protocols.routing import Priority, RoutingReport
from dynamo.tokens import TokenArray


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class SamplingOptions(msgspec.Struct, omit_defaults=True, kw_only=True):
    """How the next token is drawn; None leaves it to the engine."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    logit_bias: dict[int, float] | None = None


class StopConditions(msgspec.Struct, omit_defaults=True, kw_only=True):
    """When the engine stops. Stop strings are the frontend's business: engines deal in tokens."""

    max_tokens: int | None = None  # None: whatever the context leaves
    min_tokens: int = 0
    stop_token_ids: list[int] = []
    ignore_eos: bool = False


class GuidedDecoding(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A constraint on the output; exactly one field is set."""

    json_schema: str | None = None  # the schema as JSON text
    json_object: bool = False


class OutputOptions(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What else to return; the numbers say how many alternatives beside the token itself."""

    logprobs: int | None = None
    prompt_logprobs: int | None = None


class WorkerId(msgspec.Struct, frozen=True, array_like=True, cache_hash=True):
    """A worker everywhere: an instance and, where it runs data-parallel, one of its ranks."""

    instance_id: int
    dp_rank: int = 0


class PreprocessedRequest(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One sequence to continue."""

    model: str
    token_ids: TokenArray  # u32 (see dynamo.tokens.token_array)
    resumed_tokens: int = 0  # of token_ids, the last ones: output that another worker has made
    sampling_options: SamplingOptions = msgspec.field(default_factory=SamplingOptions)
    stop_conditions: StopConditions = msgspec.field(default_factory=StopConditions)
    output_options: OutputOptions = msgspec.field(default_factory=OutputOptions)
    guided_decoding: GuidedDecoding | None = None
    eos_token_ids: list[int] = []
    cache_salt: str | None = None  # KV blocks are shared only with requests that have the same
    dp_rank: int | None = None  # which data-parallel rank of the instance serves this; None: it chooses
    target: WorkerId | None = None  # the worker that the client asked for, by nvext.backend_instance_id
    lost_by: list[int] = []  # instances that were lost with it: routers take others if they can, and add to it
    priority: Priority = 0
    session_id: str | None = None  # what the client says the request is part of
    explain_routing: bool = False  # asks the router for a RoutingReport
    prefill_only: bool = False  # for a prefill worker: answer with a Handoff, and keep the KV cache until it is fetched
    handoff: Handoff | None = None  # for a decode worker: whose prompt is prefilled already


class Logprob(msgspec.Struct, array_like=True):
    """One candidate token and the natural logarithm of its probability."""

    token_id: int
    logprob: float


class TokenLogprobs(msgspec.Struct, array_like=True):
    """The chosen token and the most likely ones at its position, most likely first."""

    chosen: Logprob
    top: list[Logprob]


class LLMEngineOutput(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What one engine step adds to a sequence (several steps, where they arrived together)."""

    token_ids: list[int] = []
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None  # the stop token id that ended it; None for the model's own end
    logprobs: list[TokenLogprobs] | None = None  # one per token id
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # on the first output; the first entry is None
    cached_tokens: int | None = None  # on the first output: prompt tokens that needed no prefill
    handoff: Handoff | None = None  # once, of a request that is prefill_only: decode may begin
    worker_id: WorkerId | None = None  # on the first output, set by the router
    routing: RoutingReport | None = None  # likewise, by a router that was asked to explain itself
    disaggregation: DisaggReport | None = None  # likewise, and whenever another worker has prefilled the prompt


class TextEngineOutput(msgspec.Struct):
    """What a worker that speaks text has sent: a chunk in one of OpenAI's shapes, or a string."""

    chunk: Any
    worker_id: WorkerId | None = None  # on the first output


def merge_outputs(outputs: list[LLMEngineOutput]) -> LLMEngineOutput:
    """One output that says the same as `outputs` (at least one, in order)."""
    merged = outputs[0]
    if len(outputs) == 1:
        return merged
    for output in outputs[1:]:
        merged.token_ids = merged.token_ids + output.token_ids
        if output.logprobs:
            merged.logprobs = (merged.logprobs or []) + output.logprobs
        if output.prompt_logprobs is not None:
            merged.prompt_logprobs = output.prompt_logprobs
        if output.cached_tokens is not None:
            merged.cached_tokens = output.cached_tokens
        if output.handoff is not None:
            merged.handoff = output.handoff
        if output.worker_id is not None:
            merged.worker_id = output.worker_id
        if output.routing is not None:
            merged.routing = output.routing
        if output.disaggregation is not None:
            merged.disaggregation = output.disaggregation
        if output.finish_reason is not None:
            merged.finish_reason, merged.stop_reason = output.finish_reason, output.stop_reason
    return merged
