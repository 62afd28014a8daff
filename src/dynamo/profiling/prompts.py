"""Prompts that no cache knows."""

import random
from collections.abc import Sequence

# Every vocabulary has these ids. They stand for bytes and short pieces in most, and for nothing special.
_FIRST_ID, _LAST_ID = 10, 265


class Prompts:
    """Random token ids: two prompts that begin alike, of this run or an earlier one, are not to be expected."""

    def __init__(self) -> None:
        self._rng = random.Random()  # noqa: S311 - seeded by the system, and no secret

    def of(self, tokens: int) -> Sequence[int]:
        return self._rng.choices(range(_FIRST_ID, _LAST_ID + 1), k=tokens)
