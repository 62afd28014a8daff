"""Which block makes room.

A policy orders the blocks that may go; every operation takes constant time. Blocks of one prompt are of use only from
the first on, so callers add the last of them first: among equals, that one goes first.
"""

from collections import OrderedDict
from typing import Protocol

from dynamo.errors import ConfigError
from dynamo.kvbm.sketch import FrequencySketch

_WINDOW_SHARE = 8  # an eighth of the blocks is new: prompts come back soon, or they do not come back


class EvictionPolicy(Protocol):
    """The order of blocks that may be evicted. Counting how often keys are asked for is the sketch's, not its."""

    def grow(self, capacity: int) -> None:
        """There can be so many blocks now."""
        ...

    def add(self, key: bytes) -> None:
        """It may be evicted from now on, and was just used: a new one, or one that was held, or is there already."""
        ...

    def hold(self, key: bytes) -> None:
        """It must not be evicted until it is added again."""
        ...

    def drop(self, key: bytes) -> None:
        """It is gone, or unknown."""
        ...

    def evict(self) -> bytes | None:
        """Takes out the block that is worth least; None if none may go."""
        ...

    def __len__(self) -> int:
        """How many may be evicted."""
        ...


class Lru:
    """What was used longest ago goes first."""

    def __init__(self) -> None:
        self._order: OrderedDict[bytes, None] = OrderedDict()

    def grow(self, capacity: int) -> None:
        """Makes no difference."""

    def add(self, key: bytes) -> None:
        self._order[key] = None
        self._order.move_to_end(key)

    def hold(self, key: bytes) -> None:
        self._order.pop(key, None)

    def drop(self, key: bytes) -> None:
        self._order.pop(key, None)

    def evict(self) -> bytes | None:
        return self._order.popitem(last=False)[0] if self._order else None

    def __len__(self) -> int:
        return len(self._order)


class TinyLfu:
    """W-TinyLFU (Einziger et al. 2017): new blocks pass through a window, and stay if they are asked for often.

    Whatever leaves the window competes with the oldest block of the main segment; the one that was asked for less
    often goes. So prompts that never come back, however many, push each other out and not what is used.
    """

    def __init__(self, sketch: FrequencySketch, capacity: int = 0) -> None:
        self._sketch = sketch
        self._window: OrderedDict[bytes, None] = OrderedDict()
        self._main: OrderedDict[bytes, None] = OrderedDict()
        self._held_of_main: set[bytes] = set()
        self.grow(capacity)

    def grow(self, capacity: int) -> None:
        self._window_max = max(1, capacity // _WINDOW_SHARE)

    def add(self, key: bytes) -> None:
        if key in self._main:
            self._main.move_to_end(key)
            return
        if key in self._held_of_main:
            self._held_of_main.remove(key)
            self._main[key] = None
            return
        self._window[key] = None
        self._window.move_to_end(key)
        if len(self._window) > self._window_max:  # there was room for it: nobody has to compete
            self._main[self._window.popitem(last=False)[0]] = None

    def hold(self, key: bytes) -> None:
        if key in self._main:
            del self._main[key]
            self._held_of_main.add(key)
        else:
            self._window.pop(key, None)

    def drop(self, key: bytes) -> None:
        self._main.pop(key, None)
        self._window.pop(key, None)
        self._held_of_main.discard(key)

    def evict(self) -> bytes | None:
        if not self._window:
            return self._main.popitem(last=False)[0] if self._main else None
        candidate = next(iter(self._window))
        del self._window[candidate]
        if not self._main:
            return candidate
        oldest = next(iter(self._main))
        if self._sketch.count(candidate) <= self._sketch.count(oldest):
            return candidate
        del self._main[oldest]
        self._main[candidate] = None
        return oldest

    def __len__(self) -> int:
        return len(self._window) + len(self._main)


def eviction_policy(name: str, sketch: FrequencySketch, capacity: int) -> EvictionPolicy:
    """The policy of this name, lru or tinylfu; raises ConfigError for others."""
    if name == "lru":
        return Lru()
    if name == "tinylfu":
        return TinyLfu(sketch, capacity)
    raise ConfigError(f"there is no eviction policy {name!r}, only lru and tinylfu")
