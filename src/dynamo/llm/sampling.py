"""What of a request concerns the engine: how tokens are drawn and when it stops."""

import msgspec

from dynamo.llm.loaded_model import LoadedModel
from dynamo.llm.prompt_limits import check_ids
from dynamo.protocols.generation import GuidedDecoding, SamplingOptions, StopConditions
from dynamo.protocols.openai.requests import GenerationRequest, ResponseFormat

_SEEDS = 2**64


def sampling_options(request: GenerationRequest, model: LoadedModel) -> SamplingOptions:
    """The request's own values, then those of the model's generation_config.json.

    Raises InvalidRequestError for a bias on a token outside the vocabulary.
    """
    check_ids(request.logit_bias, model.tokenizer.vocab_size, "logit_bias")
    defaults = model.defaults
    return SamplingOptions(
        temperature=_either(request.temperature, defaults.temperature),
        top_p=_either(request.top_p, defaults.top_p),
        top_k=defaults.top_k if request.top_k is None else request.top_k,
        min_p=_either(request.min_p, defaults.min_p),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=_either(request.repetition_penalty, defaults.repetition_penalty),
        seed=request.seed,
        logit_bias=request.logit_bias or None,
    )


def with_seed_of(options: SamplingOptions, choice: int) -> SamplingOptions:
    """The options for one of several choices: each draws differently, and the same again for the same seed."""
    if options.seed is None or choice == 0:
        return options
    seed = (options.seed + choice + _SEEDS // 2) % _SEEDS - _SEEDS // 2  # stays within 64 bits, signed
    return msgspec.structs.replace(options, seed=seed)


def stop_conditions(request: GenerationRequest, model: LoadedModel, max_tokens: int | None) -> StopConditions:
    """When the engine stops; InvalidRequestError for a stop token outside the vocabulary."""
    check_ids(request.stop_token_ids, model.tokenizer.vocab_size, "stop_token_ids")
    return StopConditions(
        max_tokens=max_tokens,
        min_tokens=request.min_tokens or 0,
        stop_token_ids=request.stop_token_ids or [],
        ignore_eos=bool(request.ignore_eos),
    )


def guided_decoding(response_format: ResponseFormat | None) -> GuidedDecoding | None:
    """The constraint that a response format puts on the output."""
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object" or response_format.json_schema is None:
        return GuidedDecoding(json_object=True)
    return GuidedDecoding(json_schema=msgspec.json.encode(response_format.json_schema.schema).decode())


def _either(own: float | None, default: float | None) -> float | None:
    return default if own is None else own
