"""How often keys have been asked for lately, in little memory."""

from collections.abc import Iterable

import xxhash

COUNT_MAX = 15
_COUNTERS_PER_BLOCK = 8
_WIDTH_MIN = 1024
_WIDTH_MAX = 1 << 24  # bytes, of each row: of two million blocks and more, it takes some for others
_SAMPLES_PER_BLOCK = 10
_HALF = bytes(value // 2 for value in range(256))


class FrequencySketch:
    """A count-min sketch of two rows whose counters are halved regularly (TinyLFU, Einziger et al. 2017).

    It may take a key for more frequent than it is, never for less, but for what halving takes away.
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        self._seed = seed
        self._low = self._high = bytearray()
        self._mask = self._samples = self._samples_max = 0
        self._resize(capacity)

    def grow(self, capacity: int) -> None:
        """So many blocks are to be told apart; what was counted is lost when the counters get too few for that."""
        if self._width_for(capacity) > len(self._low):
            self._resize(capacity)
        self._samples_max = max(self._samples_max, _SAMPLES_PER_BLOCK * capacity)

    def record(self, keys: Iterable[bytes]) -> None:
        """Each of these was asked for once."""
        low, high, mask, seed, digest = self._low, self._high, self._mask, self._seed, xxhash.xxh3_64_intdigest
        counted = 0
        for key in keys:
            mixed: int = digest(key, seed)
            left, right = mixed & mask, mixed >> 32 & mask
            one, other = low[left], high[right]
            if one <= other:  # only the smaller counter is right, the larger one has others' counts
                if one < COUNT_MAX:
                    low[left] = one + 1
                if one == other and other < COUNT_MAX:
                    high[right] = other + 1
            else:
                high[right] = other + 1
            counted += 1
        self._samples += counted
        if self._samples >= self._samples_max:
            self._halve()

    def count(self, key: bytes) -> int:
        """0 to COUNT_MAX."""
        mixed: int = xxhash.xxh3_64_intdigest(key, self._seed)
        return min(self._low[mixed & self._mask], self._high[mixed >> 32 & self._mask])

    def _halve(self) -> None:
        self._low = self._low.translate(_HALF)
        self._high = self._high.translate(_HALF)
        self._samples //= 2

    def _resize(self, capacity: int) -> None:
        width = self._width_for(capacity)
        self._mask = width - 1
        self._low, self._high = bytearray(width), bytearray(width)
        self._samples = 0
        self._samples_max = max(_WIDTH_MIN, _SAMPLES_PER_BLOCK * capacity)

    @staticmethod
    def _width_for(capacity: int) -> int:
        wanted = min(max(_WIDTH_MIN, _COUNTERS_PER_BLOCK * capacity), _WIDTH_MAX)
        return 1 << (wanted - 1).bit_length()
