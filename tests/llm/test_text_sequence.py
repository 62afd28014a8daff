from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.errors import InternalError
from dynamo.llm.sequence import SequenceRequest, TextOutput
from dynamo.llm.text_sequence import TextSequence
from dynamo.llm.tokenizer import Tokenizer
from dynamo.protocols.generation import (
    FinishReason,
    LLMEngineOutput,
    Logprob,
    OutputOptions,
    PreprocessedRequest,
    StopConditions,
    TokenLogprobs,
    WorkerId,
)
from dynamo.protocols.routing import RoutingReport
from dynamo.testing.tiny_model import byte_fallback_files, byte_level_files
from dynamo.tokens import token_array

TOKENIZER = Tokenizer(byte_level_files())
FALLBACK = Tokenizer(byte_fallback_files())
EOS = 2


def ids_of(text: str, tokenizer: Tokenizer = TOKENIZER) -> list[int]:
    return list(tokenizer._encode([text], False)[0])


def sequence(
    tokenizer: Tokenizer = TOKENIZER,
    *,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    prompt: str = "Hello",
    conditions: StopConditions | None = None,
    **fields: Any,
) -> TextSequence:
    engine_request = PreprocessedRequest(
        model="m",
        token_ids=token_array(ids_of(prompt, tokenizer)),
        stop_conditions=conditions or StopConditions(),
        output_options=OutputOptions(logprobs=logprobs, prompt_logprobs=prompt_logprobs),
        eos_token_ids=[EOS],
    )
    return TextSequence(tokenizer, SequenceRequest(engine_request=engine_request, **fields))


def scored(token_ids: list[int], top: int = 2) -> list[TokenLogprobs]:
    return [TokenLogprobs(Logprob(i, -0.5), [Logprob(i + k, -0.5 - k) for k in range(top)]) for i in token_ids]


def step(*token_ids: int, finish: FinishReason | None = None, logprobs: bool = False) -> LLMEngineOutput:
    ids = list(token_ids)
    return LLMEngineOutput(token_ids=ids, finish_reason=finish, logprobs=scored(ids) if logprobs else None)


def run(text: TextSequence, outputs: list[LLMEngineOutput]) -> list[TextOutput]:
    results = []
    for output in outputs:
        results.append(text.push(output))
        if text.finished:
            break
    return results


def text_of(outputs: list[TextOutput]) -> str:
    return "".join(output.text for output in outputs)


def test_a_plain_step() -> None:
    text = sequence(index=3)
    text.push(step(*ids_of("Hello")))
    assert text.push(step(*ids_of(" world"))) == TextOutput(3, " world", 1)


def test_the_first_output_says_what_concerns_the_request() -> None:
    output = step(*ids_of("Hello"))
    report = RoutingReport(mode="kv", worker_id=7, dp_rank=2, prompt_blocks=0, block_size=16, overlap_blocks=0)
    output.cached_tokens, output.worker_id, output.routing = 1, WorkerId(7, 2), report
    first = sequence().push(output)
    assert (first.prompt_tokens, first.cached_tokens) == (1, 1)
    sharing = sequence(counts_prompt=False).push(output)
    assert (sharing.prompt_tokens, sharing.cached_tokens) == (None, None)
    for result in (first, sharing):
        assert (result.worker_id, result.routing) == (WorkerId(7, 2), report)


@pytest.mark.parametrize("conditions", [StopConditions(), StopConditions(stop_token_ids=[ids_of(" world")[0]])])
def test_the_token_that_ends_the_answer_gives_no_text(conditions: StopConditions) -> None:
    last = conditions.stop_token_ids[0] if conditions.stop_token_ids else EOS
    outputs = run(sequence(conditions=conditions), [step(*ids_of("Hello"), last, finish=FinishReason.STOP)])
    assert [(output.text, output.token_count, output.finish_reason) for output in outputs] == [("Hello", 2, "stop")]


def test_an_engine_may_end_with_a_token_of_the_text() -> None:
    outputs = run(sequence(), [step(*ids_of("Hello world"), finish=FinishReason.STOP)])
    assert text_of(outputs) == "Hello world"


def test_a_stop_token_in_the_middle_is_text() -> None:
    world = ids_of(" world")[0]
    text = sequence(conditions=StopConditions(stop_token_ids=[world], min_tokens=2))
    assert text_of(run(text, [step(world, world, world, finish=FinishReason.STOP)])) == " world world"


def test_an_end_in_mid_character_is_not_lost() -> None:
    outputs = run(sequence(), [step(ids_of("é")[0]), step(finish=FinishReason.LENGTH)])
    assert text_of(outputs) == "\ufffd"
    assert outputs[-1].finish_reason == "length"


def test_tokens_after_a_stop_string_are_not_counted() -> None:
    [output] = run(sequence(stop=("world",)), [step(*ids_of("Hello world, hello there"))])
    assert (output.text, output.token_count, output.finish_reason) == ("Hello ", 2, "stop")


def test_what_was_held_back_comes_out_at_the_end() -> None:
    outputs = run(sequence(stop=("world!",)), [step(*ids_of("Hello world")), step(finish=FinishReason.LENGTH)])
    assert [output.text for output in outputs] == ["Hello ", "world"]
    assert outputs[-1].finish_reason == "length"


def test_min_tokens_holds_for_stop_strings() -> None:
    ids = ids_of("Hello world") * 2
    text = sequence(stop=("world",), conditions=StopConditions(min_tokens=2))
    outputs = run(text, [step(token_id) for token_id in ids])
    assert text_of(outputs) == "Hello worldHello "
    assert sum(output.token_count for output in outputs) == 4


TEXTS = st.lists(st.sampled_from(["Hello", " world", "é", "你", "a", "b", "ab", "\n", "\U0001f600"]), max_size=12)


@settings(deadline=None)
@given(data=st.data(), words=TEXTS, stops=st.lists(st.text("ab\né你", min_size=1, max_size=3), max_size=3))
def test_the_result_does_not_depend_on_how_tokens_arrive(
    data: st.DataObject, words: list[str], stops: list[str]
) -> None:
    ids = ids_of("".join(words))

    def result(portions: list[list[int]]) -> tuple[str, int, str | None]:
        steps = [step(*portion, logprobs=True) for portion in portions] + [step(finish=FinishReason.LENGTH)]
        outputs = run(sequence(stop=tuple(stops), logprobs=1), steps)
        return text_of(outputs), sum(output.token_count for output in outputs), outputs[-1].finish_reason

    portions, rest = [], list(ids)
    while rest:
        size = data.draw(st.integers(1, 4))
        portions.append(rest[:size])
        rest = rest[size:]
    text, count, reason = result(portions)
    assert (text, count, reason) == result([[token_id] for token_id in ids])
    assert not any(stop in text for stop in stops)
    assert (reason == "stop") == any(stop in "".join(words) for stop in stops)
    if reason == "length":
        assert (text, count) == ("".join(words), len(ids))


def test_logprobs_name_tokens_by_text_and_bytes() -> None:
    first, second = ids_of("é")
    outputs = run(sequence(logprobs=1), [step(first, second, logprobs=True)])
    [one, two] = outputs[0].logprobs or []
    assert (one.chosen.raw, one.chosen.text, one.chosen.logprob) == (b"\xc3", "\ufffd", -0.5)
    assert (two.chosen.raw, two.offset, len(two.top)) == (b"\xa9", 0, 1)


def test_logprobs_of_special_tokens_have_their_text() -> None:
    text = sequence(logprobs=0)
    [entry] = text.push(step(1, logprobs=True)).logprobs or []
    assert (entry.chosen.text, entry.top) == ("<|im_start|>", [])


def test_logprobs_say_nothing_of_a_stop_string() -> None:
    ids = ids_of("Hello world, hello")
    text = sequence(stop=("world, ",), logprobs=0)
    outputs = run(text, [step(token_id, logprobs=True) for token_id in ids])
    entries = [entry for output in outputs for entry in output.logprobs or []]
    assert [entry.chosen.text for entry in entries] == ["Hello", " world"]  # the space of it is text
    assert [entry.offset for entry in entries] == [0, 5]
    assert outputs[1].logprobs is None, "held back as long as its text"


def test_logprobs_of_the_token_that_ends_the_answer_are_dropped() -> None:
    [output] = run(sequence(logprobs=0), [step(*ids_of("Hello"), EOS, finish=FinishReason.STOP, logprobs=True)])
    assert [entry.chosen.text for entry in output.logprobs or []] == ["Hello"]


def test_a_space_before_the_first_word_of_a_continuation() -> None:
    ids = ids_of("world", FALLBACK)
    assert text_of(run(sequence(FALLBACK), [step(*ids)])) == "world"
    assert text_of(run(sequence(FALLBACK, continues_prompt=True), [step(*ids)])) == " world"


def test_an_echo_comes_first() -> None:
    text = sequence(echo="Hello", continues_prompt=True, stop=("Hello",))
    outputs = run(text, [step(*ids_of(" world"), finish=FinishReason.LENGTH)])
    assert [output.text for output in outputs] == ["Hello world"], "stop strings concern the answer alone"


def test_an_echo_with_logprobs() -> None:
    prompt = "Hello world"
    text = sequence(echo=prompt, prompt=prompt, logprobs=1, prompt_logprobs=1)
    output = step(*ids_of(", hello"), finish=FinishReason.LENGTH, logprobs=True)
    output.prompt_logprobs = [None, *scored(ids_of(" world"))]
    [result] = run(text, [output])
    entries = result.logprobs or []
    assert [(entry.chosen.text, entry.offset) for entry in entries[:3]] == [("Hello", 0), (" world", 5), (",", 11)]
    assert [entry.chosen.logprob for entry in entries[:2]] == [None, -0.5]


def test_only_an_echo() -> None:
    text = sequence(echo="Hello", echo_only=True, prompt_logprobs=0)
    output = step(*ids_of(" world"))
    output.prompt_logprobs = [None]
    result = text.push(output)
    assert (result.text, result.token_count, result.finish_reason) == ("Hello", 0, "length")
    assert text.stopped


def test_an_engine_that_forgets_the_logprobs_of_the_prompt() -> None:
    with pytest.raises(InternalError):
        sequence(echo="Hello", prompt_logprobs=0).push(step(5))
