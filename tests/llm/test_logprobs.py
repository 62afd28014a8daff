import math

import pytest

from dynamo.llm.logprobs import (
    LOGPROB_MIN,
    chat_logprobs,
    completion_logprobs,
    score,
    score_prompt,
    scored_chat,
    scored_completion,
)
from dynamo.llm.sequence import ScoredToken, TokenScore
from dynamo.llm.tokenizer import Tokenizer
from dynamo.protocols.generation import Logprob, TokenLogprobs
from dynamo.protocols.openai.responses import ChatTokenLogprob, CompletionLogprobs, TopLogprob
from dynamo.testing.tiny_model import byte_fallback_files, byte_level_files

TOKENIZER = Tokenizer(byte_level_files())
FALLBACK = Tokenizer(byte_fallback_files())


def token(text: str, logprob: float | None, *top: TokenScore, offset: int = 0) -> ScoredToken:
    return ScoredToken(TokenScore(text, text.encode(), logprob), list(top), offset)


def candidate(text: str, logprob: float) -> TokenScore:
    return TokenScore(text, text.encode(), logprob)


def test_score_takes_as_many_as_were_asked_for() -> None:
    ids = TOKENIZER._encode(["Hello world"], False)[0]
    entry = TokenLogprobs(Logprob(ids[0], -1.0), [Logprob(ids[1], -0.5), Logprob(ids[0], -1.0)])
    scored = score(TOKENIZER, entry, 1, 4)
    assert scored == token("Hello", -1.0, candidate(" world", -0.5), offset=4)


def test_the_bos_of_a_prompt_is_a_token_but_no_text() -> None:
    ids = FALLBACK._encode(["Hello wor"], True)[0]
    entries = [None, *(TokenLogprobs(Logprob(i, -1.0), []) for i in ids[1:])]
    scored = score_prompt(FALLBACK, ids, entries, 0, "Hello wor")
    assert [(entry.chosen.text, entry.offset) for entry in scored] == [("<s>", 0), (" Hello", 0), (" wor", 5)]
    assert scored[0].chosen.logprob is None


def test_the_shape_of_chat() -> None:
    assert chat_logprobs([token("é", -0.5, candidate("e", -2.0))]).content == [
        ChatTokenLogprob(
            token="é",
            logprob=-0.5,
            bytes=[0xC3, 0xA9],
            top_logprobs=[TopLogprob(token="e", logprob=-2.0, bytes=[0x65])],
        )
    ]


def test_the_shape_of_completions() -> None:
    tokens = [token("a", None), token("b", -3.0, candidate("c", -0.1), candidate("c", -9.0), offset=1)]
    assert completion_logprobs(tokens) == CompletionLogprobs(
        tokens=["a", "b"],
        token_logprobs=[None, -3.0],
        top_logprobs=[None, {"c": -0.1, "b": -3.0}],
        text_offset=[0, 1],
    )


@pytest.mark.parametrize("logprob", [-math.inf, math.nan, -1e9])
def test_json_has_no_infinity(logprob: float) -> None:
    assert chat_logprobs([token("a", logprob)]).content[0].logprob == LOGPROB_MIN
    assert completion_logprobs([token("a", logprob)]).token_logprobs == [LOGPROB_MIN]


def test_both_ways_back() -> None:
    tokens = [token("é", -0.5, candidate("é", -0.5), candidate("e", -2.0))]
    assert scored_chat(chat_logprobs(tokens)) == tokens
    assert scored_completion(completion_logprobs(tokens)) == tokens
