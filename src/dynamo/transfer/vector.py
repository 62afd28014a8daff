"""struct iovec[]: where the pieces of a transfer lie, in the form in which the kernel takes it."""

import bisect
import functools
import itertools
import operator
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from dynamo.errors import InvalidRequestError
from dynamo.transfer.blocks import Blocks, is_uniform, lengths_of, offsets_of

PIECE_BYTES_MAX = 4 << 20  # larger blocks are cut, so that a transfer can stop, and be shared out, in between
IOV_MAX = 1024  # pieces that the kernel takes in one call


class Place(Protocol):
    """A region of this process or of another one."""

    @property
    def address(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def writable(self) -> bool: ...


class Vector:
    """Pieces in memory, consumed from the front."""

    __slots__ = ("_at", "_cells", "_end")

    def __init__(self, cells: "array[int]", begin: int = 0, end: int | None = None) -> None:
        """`cells`: address and length of each piece, by turns; changed as pieces are consumed."""
        self._cells = cells
        self._at = begin
        self._end = len(cells) // 2 if end is None else end

    def __len__(self) -> int:
        """Pieces that are left."""
        return self._end - self._at

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Address and length of each."""
        cells = self._cells
        return ((cells[2 * i], cells[2 * i + 1]) for i in range(self._at, self._end))

    @property
    def size_bytes(self) -> int:
        return self._size(len(self))

    @property
    def pointer(self) -> int:
        """Of the first piece's struct iovec."""
        address, _ = self._cells.buffer_info()
        return address + 16 * self._at

    def columns(self, pieces: int) -> "tuple[array[int], array[int]]":
        """Addresses, and lengths, of the first so many."""
        begin, end = 2 * self._at, 2 * (self._at + pieces)
        return self._cells[begin:end:2], self._cells[begin + 1 : end : 2]

    @property
    def alignment(self) -> int:
        """All addresses and lengths or'ed: a power of two that divides it divides each of them."""
        return functools.reduce(operator.or_, self._cells[2 * self._at : 2 * self._end], 0)

    def take(self, size_bytes: int) -> tuple[int, int]:
        """How many of the first pieces to do in one call, at least one, and how many bytes they have.

        These are at most IOV_MAX pieces, of about `size_bytes` at most.
        """
        count = min(self._end - self._at, IOV_MAX)
        while (total := self._size(count)) > size_bytes and count > 1:
            count = max(count * size_bytes // total, 1)
        return count, total

    def skip(self, pieces: int) -> None:
        """The first so many pieces are done with."""
        self._at += pieces

    def advance(self, size_bytes: int) -> None:
        """The first `size_bytes` are done with."""
        cells = self._cells
        while self._at < self._end and size_bytes >= (length := cells[2 * self._at + 1]):
            size_bytes -= length
            self._at += 1
        if size_bytes:
            cells[2 * self._at] += size_bytes
            cells[2 * self._at + 1] -= size_bytes

    def parts(self, count: int) -> "list[Vector]":
        """The same pieces in at most `count` vectors of about as many bytes."""
        if count == 1:
            return [self]
        _, lengths = self.columns(len(self))
        ends = array("Q", itertools.accumulate(lengths))
        share = (ends[-1] if ends else 0) / count
        begins = {bisect.bisect_left(ends, share * i) + 1 for i in range(1, count)}
        bounds = [0, *sorted(begin for begin in begins if begin < len(self)), len(self)]
        return self.split(end - begin for begin, end in itertools.pairwise(bounds))

    def split(self, sizes: Iterable[int]) -> "list[Vector]":
        """The same pieces in vectors of so many pieces each."""
        ends = list(itertools.accumulate(sizes, initial=self._at))
        return [Vector(self._cells, begin, end) for begin, end in itertools.pairwise(ends)]

    def tobytes(self) -> bytes:
        return self._cells[2 * self._at : 2 * self._end].tobytes()

    def _size(self, pieces: int) -> int:
        if pieces == 1:
            return self._cells[2 * self._at + 1]
        return sum(self._cells[2 * self._at + 1 : 2 * (self._at + pieces) : 2])


def locate(blocks: Blocks, places: Mapping[int, Place], *, write: bool) -> Vector:
    """Where the blocks lie. Raises InvalidRequestError for those that are not registered, or not writable."""
    cells = array("Q")
    for span in blocks.spans:
        place = places.get(span.region)
        if place is None:
            raise InvalidRequestError(f"{blocks.agent!r} has no region {span.region} registered")
        if write and not place.writable:
            raise InvalidRequestError(f"region {span.region} of {blocks.agent!r} is read-only")
        if len(span.offsets) == 8:  # one block: small transfers are many
            offset, length = _ONE.unpack(span.offsets)[0], _ONE.unpack(span.lengths)[0]
            if 0 < length <= PIECE_BYTES_MAX and offset + length <= place.size_bytes:
                cells.append(place.address + offset)
                cells.append(length)
                continue
        offsets, lengths = offsets_of(span), lengths_of(span)
        if _end(offsets, lengths, same_size=is_uniform(span)) > place.size_bytes:
            raise InvalidRequestError(f"region {span.region} of {blocks.agent!r} has {place.size_bytes} bytes")
        base = place.address
        addresses = array("Q", [base + offset for offset in offsets])
        if not is_uniform(span) or not 0 < lengths[0] <= PIECE_BYTES_MAX:
            addresses, lengths = _cut(addresses, lengths)
        cells.extend(_by_turns(addresses, lengths))
    return Vector(cells)


_ONE = struct.Struct("=Q")


def _end(offsets: "array[int]", lengths: "array[int]", *, same_size: bool) -> int:
    """Where the last byte of all blocks ends."""
    if same_size:
        return max(offsets) + lengths[0]
    return max(map(operator.add, offsets, lengths), default=0)


def _cut(addresses: "array[int]", lengths: "array[int]") -> "tuple[array[int], array[int]]":
    """The same memory in pieces that are not too large, and not empty."""
    pieces = [
        (address + begin, min(PIECE_BYTES_MAX, length - begin))
        for address, length in zip(addresses, lengths, strict=True)
        for begin in range(0, length, PIECE_BYTES_MAX)
    ]
    return array("Q", [address for address, _ in pieces]), array("Q", [length for _, length in pieces])


def _by_turns(addresses: "array[int]", lengths: "array[int]") -> "array[int]":
    cells = array("Q", bytes(16 * len(addresses)))
    cells[0::2] = addresses
    cells[1::2] = lengths
    return cells
