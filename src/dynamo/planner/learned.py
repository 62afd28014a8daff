"""How fast a worker is, learnt from what the workers count."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dynamo.planner.least_squares import LeastSquares
from dynamo.planner.observation import Observation
from dynamo.protocols.load import WorkerLoad

_ENOUGH = 5  # intervals of one worker with prefill, and such with decode, before the model says anything
_BUSY_MIN_S = 1e-6  # less is none
_BEYOND = 2.0  # it says nothing of more requests at once than this, as a multiple of the most it has seen


class Work(NamedTuple):
    """What a worker did in an interval, or what is to be timed. The order is that of the fitted costs."""

    prefill_steps: float = 0.0
    prefilled_tokens: float = 0.0
    decode_steps: float = 0.0
    decoded_tokens: float = 0.0
    kv_token_steps: float = 0.0


class LearnedModel:
    """A PerfModel of all workers together: time = the sum of what each prefill step, prompt token, decode step, decoded
    token, and token in the KV cache at a decode step costs.

    Least squares with costs of at least 0 over the intervals between observations, in which old ones count less and
    less. Workers of all roles give their part: who only prefills, nothing on decode.
    """

    def __init__(self) -> None:
        self._before: Mapping[str, WorkerLoad] = {}
        self._fit = LeastSquares(len(Work()))
        self._costs: Sequence[float] | None = None  # None: to be computed
        self._prefill_intervals = self._decode_intervals = 0
        self._most_at_once = 1.0

    def observe(self, observation: Observation) -> None:
        """Learns from workers that told at this observation and the last; what makes no sense is left out."""
        if observation.fleets is None:
            return
        fleets = observation.fleets.values()
        loads = {name: load for fleet in fleets if fleet.loads is not None for name, load in fleet.loads.items()}
        for name, load in loads.items():
            if name in self._before:
                self._learn(self._before[name], load)
        self._before = loads

    def prefill_s(self, prompt_tokens: float) -> float | None:
        if self._prefill_intervals < _ENOUGH:
            return None
        return self._time_s(Work(prefill_steps=1, prefilled_tokens=max(prompt_tokens, 1.0)))

    def prefill_tokens_per_s(self, prompt_tokens: float) -> float | None:
        """One prompt per step; engines that compute several short ones at once may be faster."""
        time_s = self.prefill_s(prompt_tokens)
        return max(prompt_tokens, 1.0) / time_s if time_s else None

    def itl_s(self, context_tokens: float, concurrency: float) -> float | None:
        if self._decode_intervals < _ENOUGH:
            return None
        requests = max(concurrency, 1.0)
        return self._time_s(
            Work(decode_steps=1, decoded_tokens=requests, kv_token_steps=requests * max(context_tokens, 1.0))
        )

    def concurrency(self, context_tokens: float, itl_s: float) -> float | None:
        """At most twice of what was seen at once: how a worker behaves far from there is anybody's guess."""
        alone_s, two_s = self.itl_s(context_tokens, 1.0), self.itl_s(context_tokens, 2.0)
        if alone_s is None or two_s is None:
            return None
        most = _BEYOND * self._most_at_once
        each_s = two_s - alone_s
        fits = 1.0 + (itl_s - alone_s) / each_s if each_s > 0 else math.inf if itl_s >= alone_s else 1.0
        return max(1.0, min(most, fits))

    def _learn(self, before: WorkerLoad, after: WorkerLoad) -> None:
        work, busy_s = _difference(before, after)
        if not _BUSY_MIN_S <= busy_s < math.inf or min(work) < 0 or not any(work):
            return  # it did nothing, or has been started anew, or does not tell
        self._fit.add([amount / busy_s for amount in work])
        self._costs = None
        self._prefill_intervals += work.prefilled_tokens > 0
        self._decode_intervals += work.decode_steps > 0
        if work.decode_steps:
            self._most_at_once = max(self._most_at_once, work.decoded_tokens / work.decode_steps)

    def _time_s(self, work: Work) -> float | None:
        if self._costs is None:
            self._costs = self._fit.solve()
        time_s = sum(amount * cost for amount, cost in zip(work, self._costs, strict=True))
        return time_s if 0 < time_s < math.inf else None


def _difference(before: WorkerLoad, after: WorkerLoad) -> tuple[Work, float]:
    work = Work(*(getattr(after, name) - getattr(before, name) for name in Work._fields))
    return work, after.busy_s - before.busy_s
