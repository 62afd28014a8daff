import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from dynamo.errors import ConfigError, ContextLengthExceededError, ModelNotFoundError
from dynamo.llm.aggregate import collect_chat, collect_completion
from dynamo.llm.delta import ChatEvents, ResponseHead
from dynamo.llm.pipeline import Pipeline, build_pipeline
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest, WorkerId
from dynamo.protocols.model_card import ModelCard, ModelInput, ModelType
from dynamo.protocols.openai import ChatCompletion, Completion, decode_chat, decode_completion
from dynamo.runtime.context import Context
from dynamo.runtime.handler import closing
from dynamo.testing.scripted import Scripted, answers
from dynamo.testing.tiny_model import byte_level_files
from dynamo.testing.waiting import within

FILES = byte_level_files()
HEAD = ResponseHead(id="id-1", created_s=5, model="m")
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


class Echo:
    """A router to workers that repeat the prompt, token by token."""

    def __init__(self, *, hang: bool = False) -> None:
        self.tokens = Scripted[PreprocessedRequest, LLMEngineOutput](_repeat, hang=hang)
        self.texts = Scripted[dict[str, Any], Any](answers({"choices": [{"text": "Hi"}]}))

    def generate(self, request: PreprocessedRequest, context: Context) -> AsyncIterator[LLMEngineOutput]:
        return self.tokens(request, context)

    def generate_text(self, request: dict[str, Any], context: Context) -> AsyncIterator[Any]:
        return self.texts(request, context)


def _repeat(request: PreprocessedRequest) -> list[LLMEngineOutput]:
    outputs = [LLMEngineOutput(token_ids=[token_id]) for token_id in request.token_ids]
    outputs[0].worker_id, outputs[0].cached_tokens = WorkerId(7), 2
    outputs[-1].finish_reason = FinishReason.LENGTH
    return outputs


def card(
    kind: ModelInput = ModelInput.Tokens, answers_: ModelType = ModelType.Chat | ModelType.Completions
) -> ModelCard:
    return ModelCard(name="m", model_type=answers_.value, model_input=kind, context_length=100)


async def chat(pipeline: Pipeline, **fields: Any) -> ChatCompletion:
    body = json.dumps(CHAT | fields).encode()
    request = decode_chat(body)
    return await within(collect_chat(pipeline.chat(request, body, Context()), request, HEAD))


async def completion(pipeline: Pipeline, **fields: Any) -> Completion:
    body = json.dumps({"model": "m", "prompt": "Hello world"} | fields).encode()
    request = decode_completion(body)
    return await within(collect_completion(pipeline.completion(request, body, Context()), request, HEAD))


async def test_a_chat_all_the_way() -> None:
    answer = await chat(build_pipeline(card(), FILES, Echo()), n=2, nvext={"extra_fields": ["worker_id"]})
    texts = [choice.message.content for choice in answer.choices]
    assert texts == ["user\nHello\nassistant\n"] * 2
    usage = msgspec.to_builtins(answer.usage)
    prompt_tokens = usage["prompt_tokens"]
    assert usage == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 2 * prompt_tokens,
        "total_tokens": 3 * prompt_tokens,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert msgspec.to_builtins(answer.nvext)["worker_id"] == {"decode_worker_id": 7, "decode_dp_rank": 0}


async def test_a_stream_says_the_same_as_the_whole() -> None:
    pipeline = build_pipeline(card(), FILES, Echo())
    body = json.dumps(CHAT | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    request = decode_chat(body)
    events = ChatEvents(request, HEAD)
    data = b"".join([events.encode(output) async for output in pipeline.chat(request, body, Context())])
    chunks = [json.loads(event[6:]) for event in (data + events.finish()).split(b"\n\n") if event]
    whole = msgspec.to_builtins(await chat(pipeline))
    deltas = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
    assert "".join(deltas) == whole["choices"][0]["message"]["content"]
    assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert chunks[-1]["usage"] == whole["usage"]


async def test_completions_all_the_way() -> None:
    pipeline = build_pipeline(card(), FILES, Echo())
    answer = await completion(pipeline, prompt=["Hello world", "The end"], echo=True, stop=" world")
    assert [(choice.text, choice.finish_reason) for choice in answer.choices] == [
        ("Hello worldHello", "stop"),
        ("The endThe end", "length"),
    ]


async def test_the_clients_mistakes_come_before_any_output() -> None:
    router = Echo()
    with pytest.raises(ContextLengthExceededError):
        await chat(build_pipeline(card(), FILES, router), max_tokens=1000, stream=True)
    assert router.tokens.requests == []


async def test_a_client_that_leaves_frees_the_engine() -> None:
    router = Echo(hang=True)
    body = json.dumps(CHAT | {"n": 2}).encode()
    pipeline = build_pipeline(card(), FILES, router)
    async with closing(pipeline.chat(decode_chat(body), body, Context())) as outputs:
        await within(anext(outputs))
        await within(anext(outputs))
        assert router.tokens.open == 2
    assert (router.tokens.open, router.tokens.closed_early) == (0, 2)


async def test_workers_that_speak_text_get_the_body() -> None:
    router = Echo()
    pipeline = build_pipeline(card(ModelInput.Text), {}, router)
    answer = await chat(pipeline, my_own_field=[1], stream=True)
    assert answer.choices[0].message.content == "Hi"
    assert (await completion(pipeline)).choices[0].text == "Hi"
    assert router.texts.requests == [
        CHAT | {"my_own_field": [1], "stream": True},
        {"model": "m", "prompt": "Hello world"},
    ]


@pytest.mark.parametrize("kind", ModelInput)
async def test_a_model_answers_only_the_routes_of_its_type(kind: ModelInput) -> None:
    chats = build_pipeline(card(kind, ModelType.Chat), FILES, Echo())
    texts = build_pipeline(card(kind, ModelType.Completions), FILES, Echo())
    assert (await chat(chats)).choices
    assert (await completion(texts)).choices
    with pytest.raises(ModelNotFoundError):
        await completion(chats)
    with pytest.raises(ModelNotFoundError):
        await chat(texts)


def test_files_that_cannot_be_used() -> None:
    with pytest.raises(ConfigError):
        build_pipeline(card(), {}, Echo())


def test_a_frontend_needs_no_model_library() -> None:
    heavy = "{'numpy', 'torch', 'transformers', 'vllm', 'huggingface_hub'}"
    code = f"import sys, dynamo.llm.pipeline; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
