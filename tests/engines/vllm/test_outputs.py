import math
from dataclasses import dataclass, field

from dynamo.engines.vllm.outputs import engine_output, token_logprobs
from dynamo.protocols.generation import (
    FinishReason,
    LLMEngineOutput,
    Logprob,
    OutputOptions,
    PreprocessedRequest,
    StopConditions,
    TokenLogprobs,
)
from dynamo.tokens import token_array


@dataclass
class Candidate:
    """vllm.logprobs.Logprob"""

    logprob: float
    rank: int


@dataclass
class Completion:
    """vllm.outputs.CompletionOutput"""

    token_ids: list[int]
    logprobs: list[dict[int, Candidate]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class Output:
    """vllm.outputs.RequestOutput"""

    outputs: list[Completion]
    num_cached_tokens: int = 0
    prompt_logprobs: list[dict[int, Candidate] | None] | None = field(default=None)


def request(*, stop: list[int] | None = None, **options: int) -> PreprocessedRequest:
    return PreprocessedRequest(
        model="m",
        token_ids=token_array([7, 8]),
        stop_conditions=StopConditions(stop_token_ids=stop or []),
        output_options=OutputOptions(**options),
        eos_token_ids=[2],
    )


def test_only_the_first_output_tells_the_cached_tokens() -> None:
    output = Output([Completion([5])], num_cached_tokens=32)

    assert engine_output(output, request(), first=True) == LLMEngineOutput(token_ids=[5], cached_tokens=32)
    assert engine_output(output, request(), first=False) == LLMEngineOutput(token_ids=[5])


def test_finish_reasons() -> None:
    def finish(reason: str) -> FinishReason | None:
        return engine_output(Output([Completion([], finish_reason=reason)]), request(), first=False).finish_reason

    assert finish("stop") is FinishReason.STOP
    assert finish("repetition") is FinishReason.STOP
    assert finish("length") is FinishReason.LENGTH
    assert finish("abort") is FinishReason.CANCELLED
    assert finish("error") is FinishReason.ERROR


def test_stop_reason_is_told_only_for_the_clients_own_stop_tokens() -> None:
    def stop_reason(reason: int | str | None) -> int | None:
        completion = Completion([5], finish_reason="stop", stop_reason=reason)
        return engine_output(Output([completion]), request(stop=[5]), first=False).stop_reason

    assert stop_reason(5) == 5
    assert stop_reason(2) is None
    assert stop_reason(None) is None
    assert stop_reason("repetition_detected") is None


def test_top_is_sorted_and_leaves_out_a_chosen_token_that_is_not_in_it() -> None:
    candidates = {9: Candidate(-5.0, rank=40), 4: Candidate(-1.0, rank=2), 3: Candidate(-0.5, rank=1)}

    assert token_logprobs(9, candidates, count=2) == TokenLogprobs(
        chosen=Logprob(9, -5.0), top=[Logprob(3, -0.5), Logprob(4, -1.0)]
    )


def test_a_chosen_token_among_the_top_is_in_both() -> None:
    candidates = {3: Candidate(-0.5, rank=1), 4: Candidate(-1.0, rank=2)}

    assert token_logprobs(3, candidates, count=2) == TokenLogprobs(
        chosen=Logprob(3, -0.5), top=[Logprob(3, -0.5), Logprob(4, -1.0)]
    )


def test_no_alternatives_asked_for() -> None:
    assert token_logprobs(3, {3: Candidate(-0.5, rank=1)}, count=0) == TokenLogprobs(chosen=Logprob(3, -0.5), top=[])


def test_minus_infinity_becomes_a_number_that_json_knows() -> None:
    assert token_logprobs(3, {3: Candidate(-math.inf, rank=9)}, count=1).chosen == Logprob(3, -9999.0)


def test_one_logprob_entry_per_token() -> None:
    steps = [{5: Candidate(-0.1, rank=1)}, {6: Candidate(-0.2, rank=1)}]

    result = engine_output(Output([Completion([5, 6], logprobs=steps)]), request(logprobs=1), first=False)

    assert result.logprobs is not None
    assert [entry.chosen for entry in result.logprobs] == [Logprob(5, -0.1), Logprob(6, -0.2)]


def test_prompt_logprobs_come_with_the_first_output_and_start_with_none() -> None:
    prompt = [None, {8: Candidate(-3.0, rank=12), 1: Candidate(-0.3, rank=1)}]
    first = engine_output(Output([Completion([5])], prompt_logprobs=prompt), request(prompt_logprobs=1), first=True)
    later = engine_output(Output([Completion([6])], prompt_logprobs=[]), request(prompt_logprobs=1), first=False)

    assert first.prompt_logprobs == [None, TokenLogprobs(chosen=Logprob(8, -3.0), top=[Logprob(1, -0.3)])]
    assert later.prompt_logprobs is None
