from typing import Any

import msgspec
import pytest

from dynamo.errors import UnsupportedFeatureError
from dynamo.llm.support import refuse_unsupported_chat, refuse_unsupported_completion
from dynamo.protocols.model_card import EngineFeature
from dynamo.protocols.openai import ChatCompletionRequest, CompletionRequest

ALL = list(EngineFeature)
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def chat(**fields: Any) -> ChatCompletionRequest:
    content = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields
    return msgspec.convert(content, ChatCompletionRequest, strict=False)


def completion(**fields: Any) -> CompletionRequest:
    return msgspec.convert({"model": "m", "prompt": "hi"} | fields, CompletionRequest, strict=False)


def refused_field(request: ChatCompletionRequest | CompletionRequest, features: list[EngineFeature]) -> str | None:
    refuse: Any = (
        refuse_unsupported_chat if isinstance(request, ChatCompletionRequest) else refuse_unsupported_completion
    )
    try:
        refuse(request, features)
    except UnsupportedFeatureError as error:
        return error.param
    return None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
        ({"functions": []}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"prediction": {}}, "prediction"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": TOOLS, "parallel_tool_calls": False}, "parallel_tool_calls"),
    ],
)
def test_what_this_release_cannot_do_in_a_chat(fields: dict[str, Any], param: str) -> None:
    assert refused_field(chat(**fields), ALL) == param


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": True},
        {"tool_choice": "none"},
        {"modalities": ["text"]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        {"response_format": {"type": "text"}, "logit_bias": {}, "logprobs": False},
    ],
)
def test_what_needs_no_feature(fields: dict[str, Any]) -> None:
    assert refused_field(chat(**fields), []) is None


@pytest.mark.parametrize(
    ("fields", "param"), [({"suffix": "x"}, "suffix"), ({"best_of": 2}, "best_of"), ({"best_of": 2, "n": 2}, "best_of")]
)
def test_what_this_release_cannot_do_in_a_completion(fields: dict[str, Any], param: str) -> None:
    assert refused_field(completion(**fields), ALL) == param


def test_values_that_ask_for_nothing() -> None:
    assert refused_field(completion(suffix="", best_of=1, echo=True), []) is None


@pytest.mark.parametrize(
    ("request_", "feature", "param"),
    [
        (chat(logprobs=True), EngineFeature.LOGPROBS, "logprobs"),
        (completion(logprobs=0), EngineFeature.LOGPROBS, "logprobs"),
        (completion(logprobs=0, echo=True), EngineFeature.PROMPT_LOGPROBS, "echo"),
        (chat(logit_bias={"1": 1}), EngineFeature.LOGIT_BIAS, "logit_bias"),
        (chat(response_format={"type": "json_object"}), EngineFeature.GUIDED_DECODING, "response_format"),
        (completion(response_format={"type": "json_object"}), EngineFeature.GUIDED_DECODING, "response_format"),
    ],
)
def test_what_the_engine_lacks(
    request_: ChatCompletionRequest | CompletionRequest, feature: EngineFeature, param: str
) -> None:
    assert refused_field(request_, ALL) is None
    assert refused_field(request_, [other for other in ALL if other is not feature]) == param
