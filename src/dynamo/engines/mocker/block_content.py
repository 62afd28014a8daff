"""What stands in the KV blocks of a simulated engine, so that a receiver can tell whether it got the right ones."""

import random
from array import array

import xxhash

ALIGN_BYTES = 16  # of which a block's size is a multiple
_PAGE_BYTES = 4096
_PAGE_WORDS = _PAGE_BYTES // 8


class BlockContent:
    """All blocks are alike, but for the first two words of each page: the block's name, and the number of the page.

    So to write one is to copy, and to check one is to look at those words and to hash the rest, at the speed of memory.
    """

    def __init__(self, block_bytes: int) -> None:
        pages = range(-(-block_bytes // _PAGE_BYTES))
        self._numbers = array("Q", pages)
        self._zeros = array("Q", bytes(8 * len(pages)))
        blank = bytearray(random.Random(block_bytes).randbytes(block_bytes))  # noqa: S311 - it is no secret
        self._wipe(memoryview(blank))
        self._blank = bytes(blank)
        self._digest = xxhash.xxh3_128_digest(blank)

    def write(self, block: memoryview, name: int) -> None:
        """Makes it the block of that name, a u64."""
        block[:] = self._blank
        words = block.cast("Q")
        words[0::_PAGE_WORDS] = self._names(name)
        words[1::_PAGE_WORDS] = self._numbers

    def consume(self, block: memoryview, name: int) -> bool:
        """Whether it was the block of that name, every byte of it; it is none afterwards."""
        words = block.cast("Q")
        named = words[0::_PAGE_WORDS] == self._names(name) and words[1::_PAGE_WORDS] == self._numbers
        self._wipe(block)
        return named and xxhash.xxh3_128_digest(block) == self._digest

    def _names(self, name: int) -> "array[int]":
        return array("Q", [name]) * len(self._numbers)

    def _wipe(self, block: memoryview) -> None:
        words = block.cast("Q")
        words[0::_PAGE_WORDS] = words[1::_PAGE_WORDS] = self._zeros
