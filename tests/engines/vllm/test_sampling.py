from dynamo.engines.vllm.sampling import sampling_arguments, structured_output_arguments
from dynamo.protocols.generation import (
    GuidedDecoding,
    OutputOptions,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
)
from dynamo.tokens import token_array

PROMPT = token_array([1, 2, 3])


def test_what_the_request_leaves_open_is_left_to_vllm() -> None:
    arguments = sampling_arguments(PreprocessedRequest(model="m", token_ids=PROMPT))

    assert arguments == {
        "max_tokens": None,
        "min_tokens": 0,
        "ignore_eos": False,
        "stop_token_ids": [],
        "logprobs": None,
        "prompt_logprobs": None,
        "detokenize": False,
        "skip_clone": True,
    }


def test_every_field_is_passed_on() -> None:
    options = {
        "temperature": 0.0,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.1,
        "seed": 7,
        "logit_bias": {5: -100.0},
    }
    assert set(options) == set(SamplingOptions.__struct_fields__)
    request = PreprocessedRequest(
        model="m",
        token_ids=PROMPT,
        sampling_options=SamplingOptions(**options),  # type: ignore[arg-type]
        stop_conditions=StopConditions(max_tokens=9, min_tokens=2, stop_token_ids=[8]),
        output_options=OutputOptions(logprobs=0, prompt_logprobs=3),
    )

    arguments = sampling_arguments(request)

    assert arguments == options | {
        "max_tokens": 9,
        "min_tokens": 2,
        "ignore_eos": False,
        "stop_token_ids": [8],
        "logprobs": 0,
        "prompt_logprobs": 3,
        "detokenize": False,
        "skip_clone": True,
    }


def test_the_requests_eos_ids_stop_too_unless_ignored() -> None:
    def stop_token_ids(*, ignore_eos: bool) -> object:
        conditions = StopConditions(stop_token_ids=[8], ignore_eos=ignore_eos)
        request = PreprocessedRequest(model="m", token_ids=PROMPT, stop_conditions=conditions, eos_token_ids=[2, 0])
        return sampling_arguments(request)["stop_token_ids"]

    assert stop_token_ids(ignore_eos=False) == [8, 2, 0]
    assert stop_token_ids(ignore_eos=True) == [8]


def test_guided_decoding() -> None:
    assert structured_output_arguments(GuidedDecoding(json_schema="{}")) == {"json": "{}"}
    assert structured_output_arguments(GuidedDecoding(json_object=True)) == {"json_object": True}


def test_an_output_that_goes_on_here_draws_by_other_numbers() -> None:
    def seed(resumed_tokens: int, seed: int | None = 7) -> object:
        request = PreprocessedRequest(
            model="m",
            token_ids=PROMPT,
            resumed_tokens=resumed_tokens,
            sampling_options=SamplingOptions(seed=seed),
        )
        return sampling_arguments(request).get("seed")

    assert seed(0) == 7
    assert seed(1, None) is None
    assert seed(1) == seed(1)
    assert len({seed(0), seed(1), seed(2), seed(1, -7), seed(1, 2**63 - 1)}) == 5
    assert all(0 <= int(str(drawn)) < 2**63 for drawn in (seed(1), seed(1, -7), seed(1, 2**63 - 1)))
