from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.engines.mocker.sampler import NATURAL_LENGTH_MAX, NATURAL_LENGTH_MIN, Sampler
from dynamo.llm.continuation import Continuation
from dynamo.protocols.generation import FinishReason, PreprocessedRequest, SamplingOptions, StopConditions
from dynamo.tokens import token_array

MakeRequest = Callable[..., PreprocessedRequest]
VOCABULARY = range(100, 1100)
ROOM = 1000


@given(key=st.integers(0, 2**64 - 1), cuts=st.lists(st.integers(0, 300), min_size=2, max_size=5))
def test_any_part_of_an_output_can_be_had_alone(key: int, cuts: list[int]) -> None:
    sampler = Sampler(VOCABULARY)
    whole = sampler.tokens(key, 0, 300)

    cuts.sort()
    for start, stop in pairwise(cuts):
        assert sampler.tokens(key, start, stop) == whole[start:stop]
    assert set(whole) <= set(VOCABULARY)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65])
def test_a_small_vocabulary_is_enough(size: int) -> None:
    sampler = Sampler(range(size))

    assert [len(sampler.tokens(key, 0, 200)) for key in range(50)] == [200] * 50
    with pytest.raises(ValueError, match="empty"):
        Sampler([])


def test_the_seed_decides_and_without_one_the_prompt(request_of: MakeRequest) -> None:
    def said(request: PreprocessedRequest, sampler_seed: int = 0) -> list[int]:
        return Sampler(VOCABULARY, sampler_seed).script(request, ROOM).tokens(0, 20)

    assert said(request_of([1, 2], seed=7)) == said(request_of([3], seed=7))
    assert said(request_of([1, 2], seed=7)) != said(request_of([1, 2], seed=-7))
    assert said(request_of([1, 2])) == said(request_of([1, 2]))
    assert said(request_of([1, 2])) != said(request_of([1, 3]))
    assert said(request_of([1, 2])) != said(request_of([1, 2]), sampler_seed=1)


def test_max_tokens_ends_by_length(request_of: MakeRequest) -> None:
    script = Sampler(VOCABULARY).script(request_of([1], max_tokens=5), ROOM)

    assert (script.length, script.finish_reason, script.stop_reason) == (5, FinishReason.LENGTH, None)
    assert len(script.tokens(0, 100)) == 5


def test_the_context_ends_by_length(request_of: MakeRequest) -> None:
    script = Sampler(VOCABULARY).script(request_of([1], max_tokens=5), 3)

    assert (script.length, script.finish_reason) == (3, FinishReason.LENGTH)


def test_without_max_tokens_the_model_ends_by_itself(request_of: MakeRequest) -> None:
    scripts = [Sampler(VOCABULARY).script(request_of([1], seed=seed), ROOM) for seed in range(500)]
    lengths = [script.length for script in scripts]

    assert {script.finish_reason for script in scripts} == {FinishReason.STOP}
    assert min(lengths) >= NATURAL_LENGTH_MIN
    assert max(lengths) <= NATURAL_LENGTH_MAX
    assert len(set(lengths)) > 150


def test_the_context_may_end_before_the_model_does(request_of: MakeRequest) -> None:
    script = Sampler(VOCABULARY).script(request_of([1]), NATURAL_LENGTH_MIN - 1)

    assert (script.length, script.finish_reason) == (NATURAL_LENGTH_MIN - 1, FinishReason.LENGTH)


def test_min_tokens_and_ignore_eos_put_the_models_own_end_off(request_of: MakeRequest) -> None:
    sampler = Sampler(VOCABULARY)
    late = sampler.script(request_of([1], min_tokens=500), ROOM)
    never = sampler.script(request_of([1], ignore_eos=True), ROOM)

    assert (late.length, late.finish_reason) == (500, FinishReason.STOP)
    assert (never.length, never.finish_reason) == (ROOM, FinishReason.LENGTH)


def test_a_stop_token_ends_when_it_is_read(request_of: MakeRequest) -> None:
    sampler = Sampler(VOCABULARY)
    said = sampler.script(request_of([1], max_tokens=90), ROOM).tokens(0, 90)
    script = sampler.script(request_of([1], max_tokens=90, stop_token_ids=(said[70],)), ROOM)
    first = said.index(said[70])

    assert script.tokens(0, first) == said[:first]
    assert script.length == 90
    assert script.tokens(first, 90) == [said[70]]
    assert (script.length, script.finish_reason, script.stop_reason) == (first + 1, FinishReason.STOP, said[70])


def test_a_stop_token_before_min_tokens_does_not_end(request_of: MakeRequest) -> None:
    sampler = Sampler(VOCABULARY)
    stop = sampler.script(request_of([1], max_tokens=90), ROOM).tokens(0, 90)[30]

    def length(min_tokens: int) -> int:
        request = request_of([1], max_tokens=90, min_tokens=min_tokens, stop_token_ids=(stop,))
        return len(sampler.script(request, ROOM).tokens(0, 90))

    assert length(min_tokens=0) == length(min_tokens=31) == 31
    assert length(min_tokens=32) > 31


@given(data=st.data(), max_tokens=st.none() | st.integers(1, 200), min_tokens=st.integers(0, 120), stops=st.booleans())
def test_another_worker_goes_on_with_the_same_script(
    data: st.DataObject, max_tokens: int | None, min_tokens: int, stops: bool
) -> None:
    """As the frontend asks it to, whatever was going to end the output."""
    sampler = Sampler(VOCABULARY)
    asked = PreprocessedRequest(
        model="m",
        token_ids=token_array(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))),
        sampling_options=SamplingOptions(seed=data.draw(st.none() | st.integers(0, 5))),
        stop_conditions=StopConditions(max_tokens=max_tokens, min_tokens=min_tokens),
    )
    if stops:
        said = sampler.tokens(sampler.key(asked), 0, 200)
        asked.stop_conditions.stop_token_ids = [data.draw(st.sampled_from(said))]
    whole = sampler.script(asked, ROOM)
    tokens = whole.tokens(0, ROOM)
    sequence = Continuation(asked)
    sequence.generated.extend(tokens[: data.draw(st.integers(0, len(tokens) - 1))])
    sequence.begun = True

    rest = sampler.script(sequence.request(), ROOM - len(sequence.generated))

    assert sequence.generated.tolist() + rest.tokens(0, ROOM) == tokens
    assert (rest.finish_reason, rest.stop_reason) == (whole.finish_reason, whole.stop_reason)
