import pytest

from dynamo.errors import ContextLengthExceededError, InvalidRequestError
from dynamo.llm.prompt_limits import AnswerLimit, check_ids, check_least, check_prompt


def check(prompt_tokens: int, limit: int | None = None, min_tokens: int = 0, context_length: int | None = 10) -> None:
    check_prompt(
        prompt_tokens,
        context_length=context_length,
        limit=None if limit is None else AnswerLimit(field="max_tokens", tokens=limit),
        min_tokens=min_tokens,
        field="messages",
    )


@pytest.mark.parametrize(("prompt_tokens", "limit"), [(9, None), (9, 1), (1, 9), (10, 0)])
def test_what_fits(prompt_tokens: int, limit: int | None) -> None:
    check(prompt_tokens, limit)


@pytest.mark.parametrize(
    ("prompt_tokens", "limit", "param"),
    [(10, None, "messages"), (11, None, "messages"), (11, 0, "messages"), (12, 5, "messages"), (8, 3, "max_tokens")],
)
def test_what_does_not_fit_is_told_with_both_numbers(prompt_tokens: int, limit: int | None, param: str) -> None:
    with pytest.raises(ContextLengthExceededError, match=rf"\b{prompt_tokens} tokens.*\b10 tokens") as caught:
        check(prompt_tokens, limit)
    assert caught.value.param == param
    assert limit is None or param != "max_tokens" or f" {limit} more" in caught.value.message


def test_a_prompt_that_has_at_least_too_many_tokens() -> None:
    check_least(10, context_length=10, field="prompt")
    with pytest.raises(ContextLengthExceededError, match=r"at least 11 tokens.*\b10 tokens") as caught:
        check_least(11, context_length=10, field="prompt")
    assert caught.value.param == "prompt"


def test_a_minimum_that_does_not_fit() -> None:
    check(7, min_tokens=3)
    with pytest.raises(InvalidRequestError) as caught:
        check(7, min_tokens=4)
    assert caught.value.param == "min_tokens"


def test_without_a_context_length_all_fits_but_nothing() -> None:
    check(10**6, 10**6, 10**6, context_length=None)
    with pytest.raises(InvalidRequestError, match="empty"):
        check(0, context_length=None)


def test_ids() -> None:
    for ids in (None, [], [0, 4], {4: 1.0}):
        check_ids(ids, 5, "f")
    with pytest.raises(InvalidRequestError, match="f: token id 5 ") as caught:
        check_ids([1, 5], 5, "f")
    assert caught.value.param == "f"
