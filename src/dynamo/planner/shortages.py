"""What was not enough though it should have been, remembered so as not to be tried again and again. Pure."""

import math
from dataclasses import dataclass

from dynamo.planner.situation import Situation
from dynamo.protocols.model_card import WorkerType

_FORGET_S = 1800.0
_LESS = 0.9  # of the traffic back then: it is worth another try


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """So many workers were too few for so much."""

    workers: int
    requests_per_s: float
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steady:
    """So many workers have been there since then, and no others on their way."""

    ready: int
    since_s: float


class Shortages:
    """Of each role, the last."""

    def __init__(self, drain_s: float) -> None:
        """`drain_s`: a fleet that has changed may take so long until it has worked off what waited before."""
        self._drain_s = drain_s
        self._last: dict[WorkerType, Shortage] = {}
        self._steady: dict[WorkerType, _Steady] = {}

    def is_steady(self, situation: Situation, now_s: float) -> bool:
        """Whether what latencies show is of the workers that there are. To be asked at every tick."""
        known = self._steady.get(situation.role)
        if known is None and not situation.coming:  # what was before is not known, and taken to be the same
            known = self._steady[situation.role] = _Steady(ready=situation.ready, since_s=-math.inf)
        elif known is None or known.ready != situation.ready or situation.coming or now_s < known.since_s:
            known = self._steady[situation.role] = _Steady(ready=situation.ready, since_s=now_s)
        return now_s - known.since_s >= self._drain_s

    def remember(self, situation: Situation, now_s: float) -> None:
        """As many workers as there are now are too few."""
        self._last[situation.role] = Shortage(
            workers=situation.counted, requests_per_s=situation.demand.requests_per_s, at_s=now_s
        )

    def last(self, situation: Situation, now_s: float) -> Shortage | None:
        """None: there was none, or it says nothing any more."""
        shortage = self._last.get(situation.role)
        if shortage is None:
            return None
        less = situation.demand.requests_per_s < _LESS * shortage.requests_per_s
        if less or not situation.demand.requests_per_s or not 0 <= now_s - shortage.at_s < _FORGET_S:
            del self._last[situation.role]
            return None
        return shortage
