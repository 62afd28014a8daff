"""The prompts of an engine's requests that have not been answered with anything yet."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from dynamo.protocols.generation import PreprocessedRequest
from dynamo.protocols.load import WorkerLoad


class PendingPrompts:
    """Their tokens, by data-parallel rank. One home for this, so that engines need not count it."""

    def __init__(self) -> None:
        self._tokens: Counter[int | None] = Counter()  # None: the engine chooses the rank, and does not say which

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._tokens)

    def add(self, request: PreprocessedRequest) -> None:
        """The engine is given this request."""
        self._tokens[request.dp_rank] += _prefill_tokens(request)

    def remove(self, request: PreprocessedRequest) -> None:
        """Its first output is there, or it has ended without one; once for each add()."""
        self._tokens[request.dp_rank] -= _prefill_tokens(request)
        if not self._tokens[request.dp_rank]:
            del self._tokens[request.dp_rank]  # clients may name any rank

    def fill_in(self, loads: Sequence[WorkerLoad]) -> list[WorkerLoad]:
        """The loads of all ranks with their `prefill_tokens`.

        Where the engine has chosen the rank, it has spread the requests evenly: each rank gets its share.
        """
        share = self._tokens[None] // max(len(loads), 1)
        return [msgspec.structs.replace(load, prefill_tokens=self._tokens[load.dp_rank] + share) for load in loads]


def _prefill_tokens(request: PreprocessedRequest) -> int:
    """Of a prompt that was prefilled elsewhere, engines compute the last token only."""
    return len(request.token_ids) if request.handoff is None else 1
