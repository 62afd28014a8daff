"""Refuses what OpenAI's protocol has but this release, or the engine behind the model, can't do: never in silence."""

from collections.abc import Collection

from dynamo.errors import UnsupportedFeatureError
from dynamo.protocols.model_card import EngineFeature
from dynamo.protocols.openai.messages import Message
from dynamo.protocols.openai.requests import ChatCompletionRequest, CompletionRequest, GenerationRequest


def refuse_unsupported_chat(request: ChatCompletionRequest, features: Collection[EngineFeature]) -> None:
    """Raises UnsupportedFeatureError, naming the field."""
    unsupported = {
        "functions": request.functions,
        "function_call": request.function_call,
        "audio": request.audio,
        "prediction": request.prediction,
        "web_search_options": request.web_search_options,
    }
    for field, value in unsupported.items():
        if value is not None:
            raise UnsupportedFeatureError(f"{field}: not supported.", param=field)
    if request.modalities not in (None, [], ["text"]):
        raise UnsupportedFeatureError("modalities: only text can be answered.", param="modalities")
    if request.tool_choice not in (None, "none", "auto"):
        raise UnsupportedFeatureError("tool_choice: a call cannot be enforced.", param="tool_choice")
    if request.tools and request.parallel_tool_calls is False:
        raise UnsupportedFeatureError(
            "parallel_tool_calls: several calls cannot be ruled out.", param="parallel_tool_calls"
        )
    for i, message in enumerate(request.messages):
        _refuse_parts(message, f"messages[{i}]")
    _refuse_missing(request, features)
    if request.logprobs:
        _require(EngineFeature.LOGPROBS, features, "logprobs")


def refuse_unsupported_completion(request: CompletionRequest, features: Collection[EngineFeature]) -> None:
    """Raises UnsupportedFeatureError, naming the field."""
    if request.suffix:
        raise UnsupportedFeatureError("suffix: not supported.", param="suffix")
    if request.best_of is not None and request.best_of > 1:
        raise UnsupportedFeatureError("best_of: over 1 is not supported.", param="best_of")
    _refuse_missing(request, features)
    if request.logprobs is not None:
        _require(EngineFeature.LOGPROBS, features, "logprobs")
        if request.echo:
            _require(EngineFeature.PROMPT_LOGPROBS, features, "echo")


def _refuse_parts(message: Message, field: str) -> None:
    if isinstance(message.content, list):
        for j, part in enumerate(message.content):
            if part.type != "text":
                place = f"{field}.content[{j}].type"
                raise UnsupportedFeatureError(f"{place}: only text parts are supported.", param=place)


def _refuse_missing(request: GenerationRequest, features: Collection[EngineFeature]) -> None:
    if request.logit_bias:
        _require(EngineFeature.LOGIT_BIAS, features, "logit_bias")
    if request.response_format is not None and request.response_format.type != "text":
        _require(EngineFeature.GUIDED_DECODING, features, "response_format")


def _require(feature: EngineFeature, features: Collection[EngineFeature], field: str) -> None:
    if feature not in features:
        raise UnsupportedFeatureError(f"{field}: the engine that serves this model does not support it.", param=field)
