"""From vLLM's outputs to the framework's."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dynamo.protocols.generation import FinishReason, LLMEngineOutput, Logprob, PreprocessedRequest, TokenLogprobs

if TYPE_CHECKING:
    from vllm.logprobs import Logprob as VllmLogprob
    from vllm.outputs import RequestOutput

FAILED = "error"  # vLLM's finish reason of a request that it could not serve

_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "repetition": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "abort": FinishReason.CANCELLED,
    FAILED: FinishReason.ERROR,
}
_LOWEST_LOGPROB = -9999.0  # what the field writes for minus infinity, which JSON cannot say


def engine_output(output: "RequestOutput", request: PreprocessedRequest, *, first: bool) -> LLMEngineOutput:
    """What one of vLLM's outputs, made with RequestOutputKind.DELTA, adds to the request's sequence."""
    (completion,) = output.outputs
    options = request.output_options
    result = LLMEngineOutput(token_ids=list(completion.token_ids))
    if options.logprobs is not None and completion.logprobs is not None:
        result.logprobs = [
            token_logprobs(token_id, candidates, options.logprobs)
            for token_id, candidates in zip(completion.token_ids, completion.logprobs, strict=True)
        ]
    if first:
        result.cached_tokens = output.num_cached_tokens
        if options.prompt_logprobs is not None and output.prompt_logprobs:
            result.prompt_logprobs = [
                token_logprobs(token_id, candidates, options.prompt_logprobs) if candidates is not None else None
                for token_id, candidates in zip(request.token_ids, output.prompt_logprobs, strict=False)
            ]
    if completion.finish_reason is not None:
        result.finish_reason = _FINISH_REASONS[completion.finish_reason]
        # vLLM names here also ends that are the model's own and not the client's.
        if completion.stop_reason in request.stop_conditions.stop_token_ids:
            result.stop_reason = completion.stop_reason
    return result


def token_logprobs(token_id: int, candidates: "Mapping[int, VllmLogprob]", count: int) -> TokenLogprobs:
    """The chosen token and the `count` most likely ones, out of vLLM's candidates, which are both together."""
    ranked = sorted(candidates.items(), key=lambda candidate: candidate[1].rank)
    return TokenLogprobs(
        chosen=_logprob(token_id, candidates[token_id]),
        top=[_logprob(*candidate) for candidate in ranked if candidate[1].rank <= count],
    )


def _logprob(token_id: int, candidate: "VllmLogprob") -> Logprob:
    return Logprob(token_id, max(candidate.logprob, _LOWEST_LOGPROB))
