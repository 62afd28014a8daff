from typing import Any

import msgspec
import pytest

from dynamo.errors import InvalidRequestError
from dynamo.llm.loaded_model import LoadedModel
from dynamo.llm.sampling import guided_decoding, sampling_options, stop_conditions, with_seed_of
from dynamo.protocols.generation import GuidedDecoding, SamplingOptions, StopConditions
from dynamo.protocols.model_card import ModelCard, ModelInput
from dynamo.protocols.openai import CompletionRequest, ResponseFormat
from dynamo.testing.tiny_model import byte_level_files

CARD = ModelCard(name="m", model_type=3, model_input=ModelInput.Tokens)
MODEL = LoadedModel.load(CARD, byte_level_files(temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1))


def request(**fields: Any) -> CompletionRequest:
    return msgspec.convert({"model": "m", "prompt": "x"} | fields, CompletionRequest, strict=False)


def test_defaults_of_the_model() -> None:
    expected = SamplingOptions(temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1)
    assert sampling_options(request(), MODEL) == expected


def test_the_request_goes_before_them_even_with_zero() -> None:
    options = sampling_options(request(temperature=0, top_p=1, top_k=-1, repetition_penalty=1, min_p=0), MODEL)
    assert options == SamplingOptions(temperature=0.0, top_p=1.0, top_k=-1, repetition_penalty=1.0, min_p=0.0)


def test_the_other_options() -> None:
    options = sampling_options(
        request(presence_penalty=1, frequency_penalty=-1, seed=5, logit_bias={"3": -100}, min_p=0.5), MODEL
    )
    assert (options.presence_penalty, options.frequency_penalty, options.seed) == (1.0, -1.0, 5)
    assert (options.logit_bias, options.min_p) == ({3: -100.0}, 0.5)


def test_ids_outside_the_vocabulary() -> None:
    size = MODEL.tokenizer.vocab_size
    with pytest.raises(InvalidRequestError) as caught:
        sampling_options(request(logit_bias={str(size): 1}), MODEL)
    assert caught.value.param == "logit_bias"
    with pytest.raises(InvalidRequestError) as caught:
        stop_conditions(request(stop_token_ids=[size]), MODEL, None)
    assert caught.value.param == "stop_token_ids"


def test_stop_conditions() -> None:
    assert stop_conditions(request(), MODEL, None) == StopConditions()
    given = request(min_tokens=2, stop_token_ids=[5], ignore_eos=True)
    expected = StopConditions(max_tokens=7, min_tokens=2, stop_token_ids=[5], ignore_eos=True)
    assert stop_conditions(given, MODEL, 7) == expected


def test_each_choice_draws_by_a_seed_of_its_own() -> None:
    options = SamplingOptions(seed=41, top_k=2)
    assert with_seed_of(options, 0) == options
    assert with_seed_of(options, 1) == SamplingOptions(seed=42, top_k=2)
    assert with_seed_of(SamplingOptions(), 1) == SamplingOptions()
    assert with_seed_of(SamplingOptions(seed=2**63 - 1), 1).seed == -(2**63)


@pytest.mark.parametrize(
    ("response_format", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, GuidedDecoding(json_object=True)),
        (
            {"type": "json_schema", "json_schema": {"schema": {"b": 1, "a": [10**30, "é"]}}},
            GuidedDecoding(json_schema=f'{{"b":1,"a":[{10**30},"é"]}}'),
        ),
    ],
)
def test_guided_decoding(response_format: dict[str, Any] | None, expected: GuidedDecoding | None) -> None:
    given = None if response_format is None else msgspec.convert(response_format, ResponseFormat)
    assert guided_decoding(given) == expected
