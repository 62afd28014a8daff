"""What the simulated model says: words without sense, but the same ones whenever it is asked again."""

import struct
from collections.abc import Sequence

import xxhash

from dynamo.protocols.generation import FinishReason, PreprocessedRequest

PASSAGE_TOKENS = 64
NATURAL_LENGTH_MIN = 16  # output tokens when nothing but the model ends a sequence
NATURAL_LENGTH_MAX = 256

_UINT64 = 0xFFFF_FFFF_FFFF_FFFF
_pair = struct.Struct("<QQ")


class Sampler:
    """Draws token i of an output as a function of (key, i), the key being a function of the request.

    An output is a row of passages, each cut out of one shuffled vocabulary at a place that the key and the passage's
    number decide: a slice yields many tokens at once, and any part can be had without what precedes it.
    """

    def __init__(self, vocabulary: Sequence[int], seed: int = 0) -> None:
        """`vocabulary`: the token ids to choose from, at least one; `seed` decides how they are shuffled."""
        if not vocabulary:
            raise ValueError("the vocabulary is empty")
        shuffled = sorted(vocabulary, key=lambda token_id: _hash(seed, token_id))
        self._places = len(shuffled)
        self._ring = shuffled * (1 + -(-PASSAGE_TOKENS // len(shuffled)))

    def script(self, request: PreprocessedRequest, room: int) -> "Script":
        """The output of `request` where the context has room for `room` tokens of it."""
        return Script(self, request, room)

    def key(self, request: PreprocessedRequest) -> int:
        """What the output depends on: the request's seed, or its prompt where it has none.

        What another worker has made of the output already is no part of the prompt.
        """
        seed = request.sampling_options.seed
        if seed is not None:
            return _hash(seed, 0)
        prompt = memoryview(request.token_ids)[: len(request.token_ids) - request.resumed_tokens]
        return xxhash.xxh3_64_intdigest(prompt.cast("B"))

    def natural_length(self, key: int) -> int:
        """After how many tokens the model would end by itself."""
        return NATURAL_LENGTH_MIN + _hash(key, _UINT64) % (NATURAL_LENGTH_MAX - NATURAL_LENGTH_MIN + 1)

    def tokens(self, key: int, start: int, stop: int) -> list[int]:
        """The tokens from number `start` up to `stop`, exclusive."""
        token_ids: list[int] = []
        while start < stop:
            passage, skipped = divmod(start, PASSAGE_TOKENS)
            count = min(PASSAGE_TOKENS - skipped, stop - start)
            place = _hash(key, passage) % self._places + skipped
            token_ids += self._ring[place : place + count]
            start += count
        return token_ids


class Script:
    """All that one sequence is going to say, and why it then ends.

    Where another worker has begun with it, the script goes on from there: its token number 0 is the next one.

    `length` (tokens), `finish_reason` and `stop_reason` hold as far as the script was read: a stop token further on is
    found when a read meets it.
    """

    __slots__ = (
        "_key", "_min_tokens", "_resumed", "_sampler", "_stop_token_ids", "finish_reason", "length", "stop_reason",
    )  # fmt: skip

    def __init__(self, sampler: Sampler, request: PreprocessedRequest, room: int) -> None:
        conditions = request.stop_conditions
        self._sampler = sampler
        self._key = sampler.key(request)
        self._resumed = request.resumed_tokens
        self._min_tokens = conditions.min_tokens
        self._stop_token_ids = frozenset(conditions.stop_token_ids)
        self.length = room if conditions.max_tokens is None else min(room, conditions.max_tokens)
        self.finish_reason = FinishReason.LENGTH
        self.stop_reason: int | None = None
        if conditions.max_tokens is None and not conditions.ignore_eos:
            natural_length = max(sampler.natural_length(self._key) - self._resumed, conditions.min_tokens, 1)
            if natural_length <= room:
                self._end(natural_length, stop_reason=None)

    def tokens(self, start: int, stop: int) -> list[int]:
        """The tokens from number `start` up to `stop`, exclusive; fewer where the script ends before."""
        resumed = self._resumed
        token_ids = self._sampler.tokens(self._key, resumed + start, resumed + min(stop, self.length))
        if self._stop_token_ids and not self._stop_token_ids.isdisjoint(token_ids):
            for number, token_id in enumerate(token_ids, start):
                if token_id in self._stop_token_ids and number + 1 >= self._min_tokens:
                    self._end(number + 1, stop_reason=token_id)
                    return token_ids[: number + 1 - start]
        return token_ids

    def _end(self, length: int, stop_reason: int | None) -> None:
        self.length, self.finish_reason, self.stop_reason = length, FinishReason.STOP, stop_reason


def _hash(key: int, number: int) -> int:
    return xxhash.xxh3_64_intdigest(_pair.pack(key & _UINT64, number & _UINT64))
