import json
from typing import Any, NoReturn

import pytest

from dynamo.errors import ContextLengthExceededError, DynamoError, InvalidRequestError, UnsupportedFeatureError
from dynamo.llm.loaded_model import LoadedModel
from dynamo.llm.preprocessor import ChatPreprocessor, CompletionPreprocessor
from dynamo.llm.sequence import SequenceRequest, TextOutput
from dynamo.llm.tokenizer import Tokenizer
from dynamo.protocols.generation import GuidedDecoding, OutputOptions, StopConditions, WorkerId
from dynamo.protocols.model_card import EngineFeature, ModelCard, ModelInput, RuntimeLimits
from dynamo.protocols.openai import decode_chat, decode_completion
from dynamo.protocols.routing import SESSION_ID
from dynamo.runtime.codec import encode_payload, payload_decoder
from dynamo.runtime.context import Context
from dynamo.runtime.stage import pushed
from dynamo.testing.scripted import Scripted
from dynamo.testing.stages import outputs_of, reading
from dynamo.testing.tiny_model import byte_fallback_files, byte_level_files

CONTEXT_LENGTH = 50
CARD = ModelCard(
    name="m",
    model_type=3,
    model_input=ModelInput.Tokens,
    context_length=CONTEXT_LENGTH,
    features=list(EngineFeature),
    limits=RuntimeLimits(data_parallel_size=3),
)
MODEL = LoadedModel.load(CARD, byte_level_files(temperature=0.6))
WITH_BOS = LoadedModel.load(CARD, byte_fallback_files())

Sequences = Scripted[SequenceRequest, TextOutput]


def text_stage() -> Sequences:
    return Sequences(lambda request: [TextOutput(request.index, "x", 1, "length")])


async def chat(model: LoadedModel = MODEL, context: Context | None = None, **fields: Any) -> list[SequenceRequest]:
    """What the next stage is asked for a chat."""
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]} | fields
    stage = text_stage()
    await outputs_of(ChatPreprocessor(pushed(stage), model), decode_chat(json.dumps(body).encode()), context)
    return sorted(stage.requests, key=lambda request: request.index)


async def completion(
    model: LoadedModel = MODEL, context: Context | None = None, **fields: Any
) -> tuple[list[SequenceRequest], list[TextOutput]]:
    """What the next stage is asked for a completion, and what comes out."""
    body = {"model": "m", "prompt": "Hello"} | fields
    stage = text_stage()
    preprocess = CompletionPreprocessor(pushed(stage), model)
    outputs = await outputs_of(preprocess, decode_completion(json.dumps(body).encode()), context)
    return sorted(stage.requests, key=lambda request: request.index), outputs


def prompt_of(request: SequenceRequest, model: LoadedModel = MODEL) -> str:
    return model.tokenizer.decode(list(request.engine_request.token_ids), skip_special_tokens=False)


async def test_a_chat_becomes_one_sequence() -> None:
    [sequence] = await chat(stop="end", max_tokens=7, min_tokens=1, temperature=0, ignore_eos=True, user="u")
    request = sequence.engine_request
    assert prompt_of(sequence) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert request.stop_conditions == StopConditions(max_tokens=7, min_tokens=1, ignore_eos=True)
    assert request.sampling_options.temperature == 0.0
    assert request.eos_token_ids == [2, 0]
    assert (sequence.index, sequence.stop, sequence.continues_prompt, sequence.echo) == (0, ("end",), False, None)
    assert (request.target, request.dp_rank) == (None, None)


async def test_without_max_tokens_the_answer_takes_what_the_context_leaves() -> None:
    [sequence] = await chat()
    assert sequence.engine_request.stop_conditions.max_tokens is None
    assert sequence.engine_request.sampling_options.temperature == 0.6


async def test_the_newer_name_wins() -> None:
    [sequence] = await chat(max_tokens=5, max_completion_tokens=6)
    assert sequence.engine_request.stop_conditions.max_tokens == 6


async def test_special_tokens_of_a_chat_are_the_templates_alone() -> None:
    [sequence] = await chat(WITH_BOS)
    assert 1 not in sequence.engine_request.token_ids


async def test_choices_share_a_prompt_and_draw_differently() -> None:
    sequences = await chat(n=3, seed=5)
    assert [sequence.index for sequence in sequences] == [0, 1, 2]
    assert [sequence.engine_request.sampling_options.seed for sequence in sequences] == [5, 6, 7]
    assert [sequence.counts_prompt for sequence in sequences] == [True, False, False]
    assert len({tuple(sequence.engine_request.token_ids) for sequence in sequences}) == 1


async def test_logprobs_of_a_chat() -> None:
    [plain] = await chat()
    [chosen] = await chat(logprobs=True)
    [top] = await chat(logprobs=True, top_logprobs=3)
    options = [sequence.engine_request.output_options for sequence in (plain, chosen, top)]
    assert options == [OutputOptions(), OutputOptions(logprobs=0), OutputOptions(logprobs=3)]


async def test_a_response_format_constrains_the_engine() -> None:
    [sequence] = await chat(response_format={"type": "json_object"})
    assert sequence.engine_request.guided_decoding == GuidedDecoding(json_object=True)


async def test_the_worker_that_the_client_names() -> None:
    [sequence] = await chat(nvext={"backend_instance_id": 2**64 - 1, "dp_rank": 2})
    assert sequence.engine_request.target == WorkerId(2**64 - 1, 2)
    [sequence] = await chat(nvext={"dp_rank": 2})
    assert (sequence.engine_request.target, sequence.engine_request.dp_rank) == (None, 2)


async def test_what_the_router_is_told() -> None:
    context = Context(metadata={SESSION_ID: "s-1"})
    fields: dict[str, Any] = {
        "n": 2,
        "cache_salt": "pepper",
        "nvext": {"extra_fields": ["routing"], "agent_hints": {"priority": 2}},
    }
    sequences = [*await chat(context=context, **fields), *(await completion(context=context, **fields))[0]]
    assert len(sequences) == 4
    for sequence in sequences:
        request = sequence.engine_request
        assert (request.cache_salt, request.priority, request.session_id) == ("pepper", 2, "s-1")
        assert request.explain_routing


@pytest.mark.parametrize("nvext", [None, {}, {"extra_fields": ["worker_id"], "agent_hints": {"priority": None}}])
async def test_by_itself_a_request_tells_the_router_nothing(nvext: dict[str, Any] | None) -> None:
    [sequence] = await chat(nvext=nvext)
    request = sequence.engine_request
    assert (request.cache_salt, request.priority, request.session_id) == (None, 0, None)
    assert not request.explain_routing
    sent = payload_decoder()(encode_payload(request))
    assert not {"cache_salt", "priority", "session_id", "explain_routing"} & sent.keys(), "and that travels as nothing"


async def test_tools_reach_the_template_unless_none_may_be_called() -> None:
    source = b"{% if tools %}{{ tools[0].function.name }}{% else %}none{% endif %}{{ thinking }}{{ reasoning_effort }}"
    model = LoadedModel.load(CARD, byte_level_files() | {"chat_template.jinja": source})
    tools = [{"type": "function", "function": {"name": "weather"}}]
    [auto] = await chat(model, tools=tools, chat_template_kwargs={"thinking": "T"}, reasoning_effort="low")
    [none] = await chat(model, tools=tools, tool_choice="none")
    assert (prompt_of(auto), prompt_of(none)) == ("weatherTlow", "none")


async def test_a_prompt_over_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(ContextLengthExceededError, match=rf"has \d\d+ tokens.* {CONTEXT_LENGTH} tokens") as caught:
        await chat(messages=[{"role": "user", "content": "x" * 100}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize("model", [MODEL, WITH_BOS], ids=["bytes", "fallback"])
async def test_a_prompt_far_over_the_context_is_not_even_tokenized(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tokenize(*_: object, **__: object) -> NoReturn:
        pytest.fail("it was tokenized")

    monkeypatch.setattr(Tokenizer, "encode", tokenize)
    long = "Hello " * 1000
    message = rf"at least \d{{3,4}} tokens.* {CONTEXT_LENGTH} tokens"
    with pytest.raises(ContextLengthExceededError, match=message) as caught:
        await chat(model, messages=[{"role": "user", "content": long}])
    assert caught.value.param == "messages"
    for prompt in (long, ["Hello", long]):
        with pytest.raises(ContextLengthExceededError, match=message) as caught:
            await completion(model, prompt=prompt)
        assert caught.value.param == "prompt"


async def test_without_a_context_length_any_prompt_is_taken() -> None:
    card = ModelCard(name="m", model_type=3, model_input=ModelInput.Tokens)
    [sequence], _ = await completion(LoadedModel.load(card, byte_level_files()), prompt="Hello " * 1000)
    assert len(sequence.engine_request.token_ids) >= 1000


async def test_an_answer_that_would_not_fit_is_refused() -> None:
    with pytest.raises(ContextLengthExceededError) as caught:
        await chat(max_completion_tokens=CONTEXT_LENGTH)
    assert caught.value.param == "max_completion_tokens"
    with pytest.raises(ContextLengthExceededError) as caught:
        await completion(max_tokens=CONTEXT_LENGTH)
    assert caught.value.param == "max_tokens"


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"tool_choice": "required"}, UnsupportedFeatureError, "tool_choice"),
        ({"reasoning_effort": "high"}, UnsupportedFeatureError, "reasoning_effort"),
        ({"logit_bias": {"100000": 1}}, InvalidRequestError, "logit_bias"),
        ({"chat_template_kwargs": {"messages": []}}, InvalidRequestError, "chat_template_kwargs.messages"),
        ({"nvext": {"dp_rank": 3}}, InvalidRequestError, "nvext.dp_rank"),
        ({"nvext": {"dp_rank": 3, "backend_instance_id": 1}}, InvalidRequestError, "nvext.dp_rank"),
    ],
)
async def test_what_a_chat_cannot_have(fields: dict[str, Any], error: type[DynamoError], param: str) -> None:
    with pytest.raises(error) as caught:
        await chat(**fields)
    assert caught.value.param == param


async def test_features_that_the_engine_lacks() -> None:
    bare = LoadedModel.load(ModelCard(name="m", model_type=3, model_input=ModelInput.Tokens), byte_level_files())
    with pytest.raises(UnsupportedFeatureError):
        await chat(bare, logprobs=True)
    with pytest.raises(UnsupportedFeatureError):
        await completion(bare, logprobs=1)


async def test_a_model_without_a_template_answers_no_chats() -> None:
    files = {name: content for name, content in byte_level_files().items() if name != "chat_template.jinja"}
    with pytest.raises(InvalidRequestError, match="chat template"):
        await chat(LoadedModel.load(CARD, files))


async def test_a_text_is_continued() -> None:
    [sequence], _ = await completion(WITH_BOS)
    assert sequence.engine_request.token_ids[0] == 1
    assert prompt_of(sequence, WITH_BOS) == "<s> Hello"
    assert sequence.continues_prompt


async def test_choices_of_several_prompts_come_prompt_by_prompt() -> None:
    sequences, _ = await completion(prompt=["Hello", "world"], n=2, seed=1)
    assert [prompt_of(sequence) for sequence in sequences] == ["Hello", "Hello", "world", "world"]
    assert [sequence.counts_prompt for sequence in sequences] == [True, False, True, False]
    assert [sequence.engine_request.sampling_options.seed for sequence in sequences] == [1, 2, 1, 2]


@pytest.mark.parametrize(("prompt", "expected"), [([5, 6], [[5, 6]]), ([[5], [6, 7]], [[5], [6, 7]])])
async def test_prompts_of_token_ids_are_taken_as_they_are(prompt: object, expected: list[list[int]]) -> None:
    sequences, _ = await completion(WITH_BOS, prompt=prompt)
    assert [list(sequence.engine_request.token_ids) for sequence in sequences] == expected


@pytest.mark.parametrize("prompt", [[100_000], [[5], [100_000]], "", ["Hello", ""]])
async def test_prompts_that_are_none(prompt: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await completion(prompt=prompt)
    assert caught.value.param == "prompt"


async def test_an_empty_text_is_a_prompt_where_there_is_a_bos() -> None:
    [sequence], _ = await completion(WITH_BOS, prompt="")
    assert list(sequence.engine_request.token_ids) == [1]


async def test_an_echo() -> None:
    [text], _ = await completion(echo=True)
    [ids], _ = await completion(prompt=[1, 345], echo=True)
    assert (text.echo, ids.echo) == ("Hello", "<|im_start|>Hello")
    [both], _ = await completion(echo=True, logprobs=2)
    assert both.engine_request.output_options == OutputOptions(logprobs=2, prompt_logprobs=2)


async def test_only_an_echo_needs_no_engine() -> None:
    sequences, outputs = await completion(prompt=["Hello", "world"], echo=True, max_tokens=0, n=2)
    assert sequences == []
    assert [(output.text, output.prompt_tokens) for output in outputs] == [
        ("Hello", 1),
        ("Hello", None),
        ("world", outputs[2].prompt_tokens),
        ("world", None),
    ]
    assert {output.finish_reason for output in outputs} == {"length"}


async def test_only_an_echo_with_logprobs_needs_one() -> None:
    [sequence], _ = await completion(echo=True, max_tokens=0, logprobs=1)
    request = sequence.engine_request
    assert sequence.echo_only
    assert request.output_options == OutputOptions(prompt_logprobs=1)
    assert request.stop_conditions.max_tokens == 1, "engines make at least one token"


async def test_a_client_that_leaves_ends_all_choices() -> None:
    stage = Sequences(lambda request: [TextOutput(request.index, "x", 1)], hang=True)
    request = decode_chat(b'{"model": "m", "messages": [{"role": "user", "content": "Hello"}], "n": 3}')
    async with reading(ChatPreprocessor(pushed(stage), MODEL), request) as reader:
        await reader.until(3)
        assert stage.open == 3
    assert (stage.open, stage.closed_early) == (0, 3)


async def test_a_reader_that_has_enough_of_an_echo() -> None:
    request = decode_completion(b'{"model": "m", "prompt": "Hello", "echo": true, "max_tokens": 0, "n": 3}')
    outputs = await outputs_of(CompletionPreprocessor(pushed(text_stage()), MODEL), request, enough=1)
    assert [output.text for output in outputs] == ["Hello"]
