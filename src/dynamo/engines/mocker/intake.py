"""What a request is to the simulated engine."""

import msgspec

from dynamo.engines.mocker.sampler import Sampler
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.errors import ContextLengthExceededError, InvalidRequestError
from dynamo.protocols.generation import PreprocessedRequest, StopConditions
from dynamo.tokens import block_seed

_ONE_TOKEN = StopConditions(max_tokens=1, ignore_eos=True)


def sequence_of(request: PreprocessedRequest, sampler: Sampler, context_length: int) -> SequenceState:
    """Raises InvalidRequestError when it could never be served in a context of so many tokens."""
    room = _room_for_output(request, context_length)
    if request.prefill_only:  # what else it says, and how it would end, is the decode worker's business
        request = msgspec.structs.replace(request, stop_conditions=_ONE_TOKEN)
    return SequenceState(
        request.token_ids,
        sampler.script(request, room),
        block_seed(cache_salt=request.cache_salt),
        prefill_only=request.prefill_only,
        remote=request.handoff is not None,
    )


def _room_for_output(request: PreprocessedRequest, context_length: int) -> int:
    """Tokens that the prompt leaves; InvalidRequestError when nothing could be generated."""
    prompt_tokens = len(request.token_ids)
    max_tokens = request.stop_conditions.max_tokens
    if not prompt_tokens:
        raise InvalidRequestError("the prompt is empty", param="prompt")
    if max_tokens is not None and max_tokens < 1:
        raise InvalidRequestError(f"max_tokens must be at least 1, not {max_tokens}", param="max_tokens")
    if prompt_tokens >= context_length:
        raise ContextLengthExceededError(
            f"the prompt has {prompt_tokens} tokens, which leaves no room for output in a context of"
            f" {context_length} tokens",
            param="prompt",
        )
    return context_length - prompt_tokens
