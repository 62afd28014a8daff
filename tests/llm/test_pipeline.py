import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from dynamo.errors import ConfigError, ConnectionLostError, ContextLengthExceededError, ModelNotFoundError
from dynamo.llm.aggregate import Answer
from dynamo.llm.delta import ChatEvents, ResponseHead
from dynamo.llm.pipeline import Pipeline, Router, build_pipeline
from dynamo.llm.sequence import TextOutput
from dynamo.protocols.generation import (
    FinishReason,
    LLMEngineOutput,
    Logprob,
    PreprocessedRequest,
    TextEngineOutput,
    TokenLogprobs,
    WorkerId,
)
from dynamo.protocols.model_card import EngineFeature, ModelCard, ModelInput, ModelType
from dynamo.protocols.openai import ChatCompletion, Completion, JsonObject, decode_chat, decode_completion
from dynamo.runtime.context import Context
from dynamo.runtime.stage import Deliver, pushed
from dynamo.testing.scripted import Scripted, answers
from dynamo.testing.stages import outputs_of, reading
from dynamo.testing.tiny_model import byte_level_files

FILES = byte_level_files()
HEAD = ResponseHead(id="id-1", created_s=5, model="m")
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


class Echo:
    """A router to workers that repeat the prompt, token by token."""

    def __init__(self, *, hang: bool = False) -> None:
        self.tokens = Scripted[PreprocessedRequest, LLMEngineOutput](_repeat, hang=hang)
        self.texts = Scripted[JsonObject, TextEngineOutput](
            answers(TextEngineOutput({"choices": [{"text": "Hi"}]}, WorkerId(7)))
        )

    async def generate(self, request: PreprocessedRequest, context: Context, deliver: Deliver[LLMEngineOutput]) -> None:
        await pushed(self.tokens)(request, context, deliver)

    async def generate_text(self, request: JsonObject, context: Context, deliver: Deliver[TextEngineOutput]) -> None:
        await pushed(self.texts)(request, context, deliver)


class Flaky:
    """A router to workers that repeat the prompt; the first one is lost with each sequence after `cut` tokens of it."""

    def __init__(self, cut: int | None) -> None:
        self._cut = cut

    async def generate(self, request: PreprocessedRequest, context: Context, deliver: Deliver[LLMEngineOutput]) -> None:
        said = request.resumed_tokens
        prompt = request.token_ids[: len(request.token_ids) - said]
        assert request.token_ids[len(prompt) :] == prompt[:said]
        cut = len(prompt) if self._cut is None or said else self._cut
        for place in range(said, cut):
            score = TokenLogprobs(Logprob(prompt[place], -place / 3), [])
            output = LLMEngineOutput(token_ids=[prompt[place]], logprobs=[score])
            if place == 0:
                output.worker_id, output.cached_tokens = WorkerId(7), 2
                output.prompt_logprobs = [None, *(TokenLogprobs(Logprob(i, -1.0), []) for i in prompt[1:])]
            if place == len(prompt) - 1:
                output.finish_reason = FinishReason.LENGTH
            if not deliver(output):
                return
        if cut < len(prompt):
            raise ConnectionLostError("gone")

    async def generate_text(self, request: JsonObject, context: Context, deliver: Deliver[TextEngineOutput]) -> None:
        raise AssertionError("nobody asks for text")


def _repeat(request: PreprocessedRequest) -> list[LLMEngineOutput]:
    outputs = [LLMEngineOutput(token_ids=[token_id]) for token_id in request.token_ids]
    outputs[0].worker_id, outputs[0].cached_tokens = WorkerId(7), 2
    outputs[-1].finish_reason = FinishReason.LENGTH
    return outputs


def card(
    kind: ModelInput = ModelInput.Tokens, answers_: ModelType = ModelType.Chat | ModelType.Completions
) -> ModelCard:
    return ModelCard(name="m", model_type=answers_.value, model_input=kind, context_length=100)


class Chat:
    """A Stage from bodies to outputs."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def __call__(self, body: bytes, context: Context, deliver: Deliver[TextOutput]) -> None:
        await self._pipeline.chat(decode_chat(body), body, context, deliver)


class Completions:
    """The same for the other route."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def __call__(self, body: bytes, context: Context, deliver: Deliver[TextOutput]) -> None:
        await self._pipeline.completion(decode_completion(body), body, context, deliver)


def chat_body(**fields: Any) -> bytes:
    return json.dumps(CHAT | fields).encode()


def answer_of(outputs: list[TextOutput]) -> Answer:
    answer = Answer()
    for output in outputs:
        answer.add(output)
    return answer


async def chat(pipeline: Pipeline, **fields: Any) -> ChatCompletion:
    body = chat_body(**fields)
    return answer_of(await outputs_of(Chat(pipeline), body)).as_chat(decode_chat(body), HEAD)


async def completion(pipeline: Pipeline, **fields: Any) -> Completion:
    body = json.dumps({"model": "m", "prompt": "Hello world"} | fields).encode()
    outputs = await outputs_of(Completions(pipeline), body)
    return answer_of(outputs).as_completion(decode_completion(body), HEAD)


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
    body = chat_body(stream=True, stream_options={"include_usage": True})
    events = ChatEvents(decode_chat(body), HEAD)
    data = b"".join([events.encode(output) for output in await outputs_of(Chat(pipeline), body)])
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


@pytest.mark.parametrize("cut", range(1, 12))
async def test_text_is_put_together_across_a_move(cut: int) -> None:
    """Characters of several tokens, stop strings, and the logprobs of what is held back for them."""

    async def answered(router: Router) -> Completion:
        body = {"prompt": "né 世x STOP tail", "stop": ["STOP"], "logprobs": 0, "echo": True, "n": 2, "ignore_eos": True}
        able = msgspec.structs.replace(card(), features=list(EngineFeature))
        return await completion(build_pipeline(able, FILES, router), **body)

    undisturbed = await answered(Flaky(None))
    assert [choice.finish_reason for choice in undisturbed.choices] == ["stop", "stop"]
    assert msgspec.to_builtins(await answered(Flaky(cut))) == msgspec.to_builtins(undisturbed)


async def test_the_clients_mistakes_come_before_any_output() -> None:
    router = Echo()
    with pytest.raises(ContextLengthExceededError):
        await chat(build_pipeline(card(), FILES, router), max_tokens=1000, stream=True)
    assert router.tokens.requests == []


async def test_a_client_that_leaves_frees_the_engine() -> None:
    router = Echo(hang=True)
    pipeline = build_pipeline(card(), FILES, router)
    async with reading(Chat(pipeline), chat_body(n=2)) as reader:
        await reader.until(2)
        assert router.tokens.open == 2
    assert (router.tokens.open, router.tokens.closed_early) == (0, 2)


async def test_workers_that_speak_text_get_the_body() -> None:
    router = Echo()
    pipeline = build_pipeline(card(ModelInput.Text), {}, router)
    answer = await chat(pipeline, my_own_field=[1], stream=True, nvext={"extra_fields": ["worker_id"]})
    assert answer.choices[0].message.content == "Hi"
    assert msgspec.to_builtins(answer.nvext)["worker_id"]["decode_worker_id"] == 7
    assert (await completion(pipeline)).choices[0].text == "Hi"
    assert router.texts.requests == [
        CHAT | {"my_own_field": [1], "stream": True, "nvext": {"extra_fields": ["worker_id"]}},
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
