"""Which blocks are worth writing to a tier below."""

from collections import OrderedDict
from typing import Protocol

from dynamo.errors import ConfigError

DECAY_S = 600.0
COUNT_MIN = 2  # from this on a block is worth it
_COUNT_MAX = 64  # that is forgotten after about ten hours
_ENTRIES_MAX = 1 << 18


class OffloadFilter(Protocol):
    """Decides block by block."""

    def seen(self, key: bytes, now_s: float) -> bool:
        """It was stored or asked for once more; whether it is worth writing now."""
        ...

    def admits(self, key: bytes, now_s: float) -> bool:
        """Whether it is worth writing."""
        ...


class NoFilter:
    """Every block is."""

    def seen(self, key: bytes, now_s: float) -> bool:
        return True

    def admits(self, key: bytes, now_s: float) -> bool:
        return True


class FrequencyFilter:
    """Blocks that were used again: the count is 1 at first, doubles on each use, and loses 1 every DECAY_S.

    Of more than `entries_max` blocks, those that were not seen for longest are forgotten.
    """

    def __init__(self, entries_max: int = _ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._counts: OrderedDict[bytes, tuple[int, int]] = OrderedDict()  # count, and the step it is of

    def seen(self, key: bytes, now_s: float) -> bool:
        step = int(now_s / DECAY_S)
        count = min(2 * self._count(key, step), _COUNT_MAX) or 1
        self._counts[key] = (count, step)
        self._counts.move_to_end(key)
        if len(self._counts) > self._entries_max:
            self._counts.popitem(last=False)
        return count >= COUNT_MIN

    def admits(self, key: bytes, now_s: float) -> bool:
        return self._count(key, int(now_s / DECAY_S)) >= COUNT_MIN

    def _count(self, key: bytes, step: int) -> int:
        count, since = self._counts.get(key, (0, step))
        return max(count - (step - since), 0)


def offload_filter(name: str) -> OffloadFilter:
    """The filter of this name, frequency or none; raises ConfigError for others."""
    if name == "none":
        return NoFilter()
    if name == "frequency":
        return FrequencyFilter()
    raise ConfigError(f"there is no offload filter {name!r}, only frequency and none")
