"""Prompts that nothing was seen of before: random tokens. What they mean makes no difference to the cache."""

import random
from collections.abc import Iterator

VOCABULARY = range(1000, 40000)  # plain words of SmolLM2's


def unique_prompts(tokens: int, seed: int) -> Iterator[list[int]]:
    """Any number of them."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    while True:
        yield chance.choices(VOCABULARY, k=tokens)


def turns(conversations: int, count: int, question_tokens: int, seed: int) -> list[list[list[int]]]:
    """For each conversation what its user says, turn by turn."""
    prompts = unique_prompts(question_tokens, seed)
    return [[next(prompts) for _ in range(count)] for _ in range(conversations)]
