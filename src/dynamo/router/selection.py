"""Ways to choose one of several workers that need to know nothing about the request. Pure."""

import random
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Protocol


class RouterMode(StrEnum):
    """How a frontend spreads requests over workers."""

    ROUND_ROBIN = "round-robin"
    RANDOM = "random"
    LEAST_LOADED = "least-loaded"
    DIRECT = "direct"  # the request names its worker
    KV = "kv"  # where the prompt costs least, by what is cached and who is busy


class Selector(Protocol):
    """Picks one of `candidates` (not empty, ascending), given how many requests each has in flight."""

    def pick(self, candidates: Sequence[int], in_flight: Mapping[int, int]) -> int: ...


class RoundRobin:
    """Each in its turn."""

    def __init__(self) -> None:
        self._turn = -1

    def pick(self, candidates: Sequence[int], in_flight: Mapping[int, int]) -> int:
        self._turn += 1
        return candidates[self._turn % len(candidates)]


class Random:
    """Any, with equal probability."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def pick(self, candidates: Sequence[int], in_flight: Mapping[int, int]) -> int:
        return self._rng.choice(candidates)


class LeastLoaded:
    """The one with the fewest requests in flight; any of them when there are several."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def pick(self, candidates: Sequence[int], in_flight: Mapping[int, int]) -> int:
        fewest = min(in_flight.get(i, 0) for i in candidates)
        return self._rng.choice([i for i in candidates if in_flight.get(i, 0) == fewest])


def make_selector(mode: RouterMode, rng: random.Random) -> Selector:
    """The selector of a mode. DIRECT has none of its own, nor has KV for requests whose tokens are not known."""
    if mode is RouterMode.RANDOM:
        return Random(rng)
    if mode in (RouterMode.LEAST_LOADED, RouterMode.KV):
        return LeastLoaded(rng)
    return RoundRobin()
