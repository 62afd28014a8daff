"""Descriptor lists: which bytes of which registered memory a transfer reads or writes."""

from array import array
from collections.abc import Iterable

import msgspec

from dynamo.errors import InvalidRequestError

MAX_BLOCKS = 1 << 20  # of one list


class Span(msgspec.Struct, array_like=True, frozen=True):
    """Blocks of one region. Offsets from its start and lengths, in bytes, are little-endian u64 one after the other."""

    region: int
    offsets: bytes
    lengths: bytes


class Blocks(msgspec.Struct, array_like=True, frozen=True):
    """Any number of blocks of one agent's regions, in order. Travels as `encode()` gives it."""

    agent: str
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, agent: str, region: int, offsets: Iterable[int], lengths: Iterable[int]) -> "Blocks":
        """Raises InvalidRequestError for offsets and lengths that do not match, or are no sizes."""
        try:
            span = Span(region, array("Q", offsets).tobytes(), array("Q", lengths).tobytes())
        except (OverflowError, TypeError) as error:
            raise InvalidRequestError(f"offsets and lengths are sizes in bytes: {error}") from error
        blocks = cls(agent, (span,))
        blocks.check()
        return blocks

    @classmethod
    def decode(cls, data: bytes) -> "Blocks":
        """Raises InvalidRequestError for what encode() has not made."""
        try:
            blocks: Blocks = _DECODER.decode(data)
        except msgspec.DecodeError as error:
            raise InvalidRequestError(f"this is no list of blocks: {error}") from error
        blocks.check()
        return blocks

    def encode(self) -> bytes:
        return _ENCODER.encode(self)

    def check(self) -> None:
        """Raises InvalidRequestError when offsets and lengths do not match, or there are too many."""
        for span in self.spans:
            if len(span.offsets) != len(span.lengths) or len(span.offsets) % 8:
                raise InvalidRequestError("a list of blocks needs as many offsets as lengths")
        if len(self) > MAX_BLOCKS:
            raise InvalidRequestError(f"a list may have {MAX_BLOCKS} blocks, not {len(self)}")

    def __len__(self) -> int:
        return sum(len(span.offsets) for span in self.spans) // 8

    def __add__(self, other: "Blocks") -> "Blocks":
        """These, and then those of the same agent."""
        if other.agent != self.agent:
            raise InvalidRequestError(f"blocks of {self.agent!r} and of {other.agent!r} are no list")
        return Blocks(self.agent, self.spans + other.spans)

    def matches(self, other: "Blocks") -> bool:
        """Whether the others are as many, and of the same sizes."""
        return b"".join(span.lengths for span in self.spans) == b"".join(span.lengths for span in other.spans)

    @property
    def size_bytes(self) -> int:
        return sum(sum(lengths_of(span)) for span in self.spans)


def offsets_of(span: Span) -> "array[int]":
    return _u64(span.offsets)


def lengths_of(span: Span) -> "array[int]":
    return _u64(span.lengths)


def is_uniform(span: Span) -> bool:
    """Whether there are blocks, and all of the same size, as is the rule: they need not be looked at one by one."""
    return bool(span.lengths) and span.lengths == span.lengths[:8] * (len(span.lengths) // 8)


def _u64(data: bytes) -> "array[int]":
    values = array("Q")
    values.frombytes(data)
    return values


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Blocks)
