"""What the vocabulary and the context length allow."""

from collections.abc import Iterable
from dataclasses import dataclass

from dynamo.errors import ContextLengthExceededError, InvalidRequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLimit:
    """How many tokens the answer may have, and the request's field that says so."""

    field: str
    tokens: int


def check_ids(ids: Iterable[int] | None, vocab_size: int, field: str) -> None:
    """Raises InvalidRequestError where an id is outside the vocabulary."""
    largest = max(ids or (), default=0)
    if largest >= vocab_size:
        raise InvalidRequestError(
            f"{field}: token id {largest} is outside the vocabulary of {vocab_size} tokens.", param=field
        )


def check_least(least_tokens: int, *, context_length: int, field: str) -> None:
    """Raises ContextLengthExceededError where a prompt of `least_tokens` or more is longer than the context."""
    if least_tokens > context_length:
        raise ContextLengthExceededError(
            f"The prompt has at least {least_tokens} tokens, but the model's context length is {context_length} "
            "tokens, prompt and answer together.",
            param=field,
        )


def check_prompt(
    prompt_tokens: int, *, context_length: int | None, limit: AnswerLimit | None, min_tokens: int, field: str
) -> None:
    """Raises an error of the client's where prompt and answer don't fit into `context_length` tokens.

    Without a `limit` the answer takes what the context leaves, which is at least one token. A limit that would not fit
    is refused rather than cut, as OpenAI does. `field` holds the prompt. None for `context_length`: all fits.
    """
    if prompt_tokens == 0:
        raise InvalidRequestError(f"{field}: the prompt is empty.", param=field)
    if context_length is None:
        return
    left = context_length - prompt_tokens
    needed = 1 if limit is None or limit.tokens > 0 else 0
    if left < needed:
        raise ContextLengthExceededError(
            f"The prompt has {prompt_tokens} tokens, but the model's context length is {context_length} tokens, "
            "prompt and answer together.",
            param=field,
        )
    if limit is not None and limit.tokens > left:
        raise ContextLengthExceededError(
            f"The prompt has {prompt_tokens} tokens and {limit.field} asks for {limit.tokens} more, but the model's "
            f"context length is {context_length} tokens.",
            param=limit.field,
        )
    if min_tokens > left:
        raise InvalidRequestError(
            f"min_tokens: the prompt leaves {left} of the context's {context_length} tokens.", param="min_tokens"
        )
