"""Makes the engine's requests out of an OpenAI request and the token ids of its prompts."""

from collections.abc import Sequence

import msgspec

from dynamo.errors import InvalidRequestError
from dynamo.llm.loaded_model import LoadedModel
from dynamo.llm.prompt_limits import AnswerLimit, check_prompt
from dynamo.llm.sampling import guided_decoding, sampling_options, stop_conditions, with_seed_of
from dynamo.protocols.generation import OutputOptions, PreprocessedRequest, WorkerId
from dynamo.protocols.openai.requests import GenerationRequest, choices_per_prompt, extra_fields
from dynamo.tokens import TokenArray, token_array


def engine_requests(
    request: GenerationRequest,
    model: LoadedModel,
    prompts: Sequence[TokenArray],
    *,
    limit: AnswerLimit | None,
    output_options: OutputOptions,
    session_id: str | None,
    field: str,
) -> list[PreprocessedRequest]:
    """One request per choice: n for the first prompt, n for the second, and so on.

    `field` is the request's field that holds the prompts. Raises InvalidRequestError where a prompt, a token id or a
    rank does not suit the model.
    """
    for prompt in prompts:
        check_prompt(
            len(prompt),
            context_length=model.card.context_length,
            limit=limit,
            min_tokens=request.min_tokens or 0,
            field=field,
        )
    common = PreprocessedRequest(
        model=request.model,
        token_ids=token_array(),
        sampling_options=sampling_options(request, model),
        stop_conditions=stop_conditions(request, model, None if limit is None else limit.tokens),
        output_options=output_options,
        guided_decoding=guided_decoding(request.response_format),
        eos_token_ids=list(model.tokenizer.eos_token_ids),
        dp_rank=_dp_rank(request, model.card.limits.data_parallel_size),
        target=_target(request),
        cache_salt=request.cache_salt,
        priority=_priority(request),
        session_id=session_id,
        explain_routing="routing" in extra_fields(request),
    )
    options = [with_seed_of(common.sampling_options, i) for i in range(choices_per_prompt(request))]
    return [
        msgspec.structs.replace(common, token_ids=prompt, sampling_options=option)
        for prompt in prompts
        for option in options
    ]


def _dp_rank(request: GenerationRequest, ranks: int) -> int | None:
    """The data-parallel rank that the client asks for."""
    rank = None if request.nvext is None else request.nvext.dp_rank
    if rank is not None and rank >= ranks:
        raise InvalidRequestError(
            f"nvext.dp_rank: there is no rank {rank}; the model's workers have {ranks}, counted from 0.",
            param="nvext.dp_rank",
        )
    return rank


def _target(request: GenerationRequest) -> WorkerId | None:
    """The worker that the client asks for."""
    nvext = request.nvext
    if nvext is None or nvext.backend_instance_id is None:
        return None
    return WorkerId(nvext.backend_instance_id, nvext.dp_rank or 0)


def _priority(request: GenerationRequest) -> float:
    """How many seconds of waiting the client would have its request be ahead of others."""
    hints = None if request.nvext is None else request.nvext.agent_hints
    return 0 if hints is None else hints.priority or 0
