"""What the next worker is asked for, and ends that a lost worker did not get to say."""

from typing import Any

import msgspec
import pytest

from dynamo.llm.continuation import Continuation
from dynamo.protocols.generation import (
    FinishReason,
    GuidedDecoding,
    LLMEngineOutput,
    OutputOptions,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
    WorkerId,
)
from dynamo.tokens import token_array

EOS = 9


def request(**conditions: Any) -> PreprocessedRequest:
    return PreprocessedRequest(
        model="m",
        token_ids=token_array([1, 2, 3]),
        sampling_options=SamplingOptions(seed=7, temperature=0.5),
        stop_conditions=StopConditions(**conditions),
        output_options=OutputOptions(logprobs=1, prompt_logprobs=2),
        eos_token_ids=[EOS],
        cache_salt="salt",
        priority=3,
        session_id="s",
        explain_routing=True,
    )


def after(sequence: Continuation, *token_ids: int) -> Continuation:
    sequence.generated.extend(token_ids)
    sequence.begun = True
    return sequence


def test_the_first_worker_gets_the_request_as_it_is() -> None:
    asked = request(max_tokens=5)
    assert Continuation(asked).request() == asked


def test_before_any_output_only_the_lost_worker_is_told_of() -> None:
    asked = request(max_tokens=5, min_tokens=2)
    sequence = Continuation(asked)
    sequence.lost_by = [4]
    again = sequence.request()
    assert again.lost_by == [4]
    again.lost_by.append(5)  # as a router does
    assert sequence.request() == msgspec.structs.replace(asked, lost_by=[4])


def test_the_rest_of_a_sequence() -> None:
    sequence = after(Continuation(request(max_tokens=10, min_tokens=5, stop_token_ids=[8])), 4, 5)
    sequence.lost_by.append(6)
    rest = sequence.request()
    assert rest.token_ids == token_array([1, 2, 3, 4, 5])
    assert rest.resumed_tokens == 2
    assert rest.stop_conditions == StopConditions(max_tokens=8, min_tokens=3, stop_token_ids=[8])
    assert rest.output_options == OutputOptions(logprobs=1)
    assert not rest.explain_routing
    asked = request()
    for field in ("model", "sampling_options", "eos_token_ids", "cache_salt", "priority", "session_id"):
        assert getattr(rest, field) == getattr(asked, field)

    after(sequence, 6, 7, 6, 7)
    rest = sequence.request()
    assert rest.resumed_tokens == 6
    assert rest.stop_conditions == StopConditions(max_tokens=4, min_tokens=0, stop_token_ids=[8])


def test_the_client_s_request_stays_as_it_was() -> None:
    asked, before = request(max_tokens=10), request(max_tokens=10)
    after(Continuation(asked), 4, 5).request()
    assert asked == before


def test_without_a_limit_there_is_none() -> None:
    assert after(Continuation(request()), 4).request().stop_conditions.max_tokens is None


class TestEnd:
    @pytest.mark.parametrize(
        ("conditions", "token_ids", "expected"),
        [
            ({"max_tokens": 2}, [4], None),
            ({"max_tokens": 2}, [4, 5], (FinishReason.LENGTH, None)),
            ({}, [4, EOS], (FinishReason.STOP, None)),
            ({}, [EOS, 4], None),
            ({"ignore_eos": True}, [4, EOS], None),
            ({"min_tokens": 3}, [4, EOS], None),
            ({"min_tokens": 2}, [4, EOS], (FinishReason.STOP, None)),
            ({"stop_token_ids": [8], "ignore_eos": True}, [8], (FinishReason.STOP, 8)),
            ({"max_tokens": 1}, [EOS], (FinishReason.STOP, None)),
            ({}, [], None),
            ({}, [4] * 7, (FinishReason.LENGTH, None)),
            ({"max_tokens": 100}, [4] * 7, (FinishReason.LENGTH, None)),
        ],
    )
    def test_what_has_been_reached(self, conditions: Any, token_ids: list[int], expected: Any) -> None:
        end = after(Continuation(request(**conditions), context_length=10), *token_ids).end()
        assert (None if end is None else (end.finish_reason, end.stop_reason)) == expected
        assert end is None or end == LLMEngineOutput(finish_reason=end.finish_reason, stop_reason=end.stop_reason)

    def test_a_context_of_unknown_length(self) -> None:
        assert after(Continuation(request()), *[4] * 1000).end() is None


def test_what_no_other_worker_can_go_on_with() -> None:
    free = PreprocessedRequest(model="m", token_ids=token_array([1]))
    pinned = PreprocessedRequest(model="m", token_ids=token_array([1]), target=WorkerId(1))
    guided = PreprocessedRequest(
        model="m", token_ids=token_array([1]), guided_decoding=GuidedDecoding(json_object=True)
    )
    assert [Continuation(each).pinned for each in (free, pinned, guided)] == [False, True, False]
    assert not any(Continuation(each).within_grammar for each in (free, pinned, guided))
    assert [after(Continuation(each), 4).within_grammar for each in (free, pinned, guided)] == [False, False, True]
