"""Which router a simulation has."""

import random
from enum import StrEnum

from dynamo.router.selection import RouterMode, make_selector
from dynamo.simulator.router_core import RouterCore, SelectorCore


class SimulatedMode(StrEnum):
    """The router modes that can be compared."""

    ROUND_ROBIN = "round-robin"
    RANDOM = "random"
    LEAST_LOADED = "least-loaded"


def make_router_core(mode: SimulatedMode, workers: int, rng: random.Random) -> RouterCore:
    """A router of this mode for workers numbered from 0."""
    return SelectorCore(make_selector(RouterMode(mode.value), rng), workers)
