"""From a request to the arguments of vLLM's SamplingParams."""

import struct

import msgspec
import xxhash

from dynamo.protocols.generation import GuidedDecoding, PreprocessedRequest, StopConditions

_UINT64 = 0xFFFF_FFFF_FFFF_FFFF


def sampling_arguments(request: PreprocessedRequest) -> dict[str, object]:
    """Keyword arguments for SamplingParams, without guided decoding (see structured_output_arguments).

    What the request leaves open is left out: vLLM's defaults apply.
    """
    options = msgspec.structs.asdict(request.sampling_options)  # the fields have vLLM's names
    arguments: dict[str, object] = {name: value for name, value in options.items() if value is not None}
    if request.resumed_tokens and request.sampling_options.seed is not None:
        arguments["seed"] = _later_seed(request.sampling_options.seed, request.resumed_tokens)
    conditions = request.stop_conditions
    return arguments | {
        "max_tokens": conditions.max_tokens,  # None: vLLM too takes what the context leaves
        "min_tokens": conditions.min_tokens,
        "ignore_eos": conditions.ignore_eos,
        "stop_token_ids": _stop_token_ids(conditions, request.eos_token_ids),
        "logprobs": request.output_options.logprobs,
        "prompt_logprobs": request.output_options.prompt_logprobs,
        "detokenize": False,
        "skip_clone": True,  # nobody else uses the object
    }


def has_penalties(request: PreprocessedRequest) -> bool:
    """Whether it matters which tokens are output, and which are prompt."""
    options = request.sampling_options
    return bool(options.presence_penalty or options.frequency_penalty)


def structured_output_arguments(guided: GuidedDecoding) -> dict[str, object]:
    """Keyword arguments for StructuredOutputsParams."""
    return {"json": guided.json_schema} if guided.json_schema is not None else {"json_object": True}


def _stop_token_ids(conditions: StopConditions, eos_token_ids: list[int]) -> list[int]:
    """vLLM knows the ends that the model's own files name; the request may name more."""
    if conditions.ignore_eos:
        return conditions.stop_token_ids
    return conditions.stop_token_ids + eos_token_ids


def _later_seed(seed: int, resumed_tokens: int) -> int:
    """For an output that goes on here: with the seed itself, vLLM would draw by the same random numbers once more."""
    return xxhash.xxh3_64_intdigest(struct.pack("<QQ", seed & _UINT64, resumed_tokens)) >> 1
