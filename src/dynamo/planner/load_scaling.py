"""The load policy: one worker more or fewer, by how things are now. Seconds. Pure.

Up: what the arrivals of the last seconds need for certain, or what queues, caches and latencies show. Down: fewer would
still be enough for what the arrivals can be at most, and nothing shows that they would not. What is asked for goes down
by one at a time (see targets).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dynamo.planner.demand import Demand
from dynamo.planner.load_signals import FleetLoad
from dynamo.planner.need import Need, Targets, at_once_workers
from dynamo.planner.observation import Traffic
from dynamo.planner.perf_model import PerfModel
from dynamo.planner.role_need import role_need
from dynamo.protocols.model_card import WorkerType

_KV_FULL = 0.9  # from this on engines preempt
_KV_AIM = 0.75  # with one worker fewer
_LATENCY_AIM = 0.8  # share of a target, with one worker fewer
_FAR = 1.5  # a need of so many times what there is, is met at once
_FORGET_S = 1800.0  # for how long it is remembered that so many workers were not enough
_LESS = 0.9  # of the traffic back then: it is worth another try
_ROUNDING = 1e-6  # of a worker: sums of floats
_AHEAD = 2.0  # so many times the need may be on its way because of queues, which shrink only when workers are there


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """One role at one tick."""

    role: WorkerType
    counted: int  # workers that are to be there, but for those that fail to start: what is decided on
    ready: int
    coming: int  # that start
    demand: Demand
    traffic: Traffic
    load: FleetLoad | None  # None: no worker told

    @property
    def prefills(self) -> bool:
        return self.role is not WorkerType.Decode

    @property
    def decodes(self) -> bool:
        return self.role is not WorkerType.Prefill

    @property
    def relief(self) -> float:
        """What a latency will be multiplied by when those that start are there: the load is spread over more."""
        return self.ready / max(self.ready + self.coming, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    workers: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shortage:
    """So many workers were once not enough, though the model would say so."""

    workers: int
    requests_per_s: float
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steady:
    """So many workers have been there since then, and no others on their way."""

    ready: int
    since_s: float


class LoadPolicy:
    """Remembers when latencies showed that a number of workers was too small, so as not to try it again and again."""

    def __init__(self, model: PerfModel, drain_s: float) -> None:
        """`drain_s`: within which a backlog is to be worked off: for so long more workers stay anyway."""
        self._model = model
        self._drain_s = drain_s
        self._shortages: dict[WorkerType, _Shortage] = {}
        self._steady: dict[WorkerType, _Steady] = {}

    def propose(self, situation: Situation, targets: Targets, now_s: float) -> Proposal:
        """One worker more, or several where the need is far above; where fewer are enough, as many as are."""
        counted = situation.counted
        least = self._certain_need(situation, targets)
        if least is not None and _whole(least.workers) > counted:
            whole = _whole(least.workers)
            return Proposal(workers=whole if whole >= _FAR * counted else counted + 1, reason=least.reason)
        shown = self._pressure(situation, targets)
        steady = self._is_steady(situation, now_s)
        if shown and situation.coming and least is not None and counted >= _AHEAD * least.workers:
            return Proposal(workers=counted, reason=f"{shown}, but {situation.coming} start")
        if shown:
            if steady or least is None:  # where no model tells, there is nothing better to go by
                self._shortages[situation.role] = _Shortage(
                    workers=counted, requests_per_s=situation.demand.requests_per_s, at_s=now_s
                )
            return Proposal(workers=counted + 1, reason=shown)
        numbers = [*self._enough(situation, targets, now_s), *([] if least is None else [least])]
        enough = max(numbers, key=lambda need: need.workers)
        if _whole(enough.workers) >= counted:
            return Proposal(workers=counted, reason=enough.reason)
        return Proposal(workers=_whole(enough.workers), reason=f"no more are needed: {enough.reason}")

    def _is_steady(self, situation: Situation, now_s: float) -> bool:
        """Whether as many workers have been there for long enough to have worked off what waited before."""
        known = self._steady.get(situation.role)
        if known is None and not situation.coming:  # what was before is not known, and taken to be the same
            known = self._steady[situation.role] = _Steady(ready=situation.ready, since_s=-math.inf)
        elif known is None or known.ready != situation.ready or situation.coming or now_s < known.since_s:
            known = self._steady[situation.role] = _Steady(ready=situation.ready, since_s=now_s)
        return now_s - known.since_s >= self._drain_s

    def _certain_need(self, situation: Situation, targets: Targets) -> Need | None:
        """By the arrivals and what has piled up. None: too little is known."""
        demand, load = situation.demand, situation.load
        need = role_need(situation.role, demand.at(demand.at_least_per_s), self._model, targets)
        if need is None and not situation.counted and demand.requests_per_s:
            return Need(workers=1, reason="requests come, and there is no worker")
        if need is None or load is None:
            return need
        backlog = self._backlog(situation, targets) if situation.prefills else None
        if backlog is not None:
            need = Need(workers=need.workers + backlog.workers, reason=f"{need.reason}; {backlog.reason}")
        running = self._running_need(situation, load, targets)
        if running is not None and running.workers > need.workers:
            return running
        return need

    def _backlog(self, situation: Situation, targets: Targets) -> Need | None:
        """Workers that work off the prompts that wait too long, beside those for new ones."""
        queued = self._queued_tokens(situation)
        rate = self._prefill_rate(situation)
        alone_s = self._model.prefill_s(situation.demand.prefill_tokens or 0.0)
        if not queued or not rate or alone_s is None:
            return None
        there = max(situation.ready + situation.coming, 1)
        wait_s = queued / (there * rate)
        if wait_s + alone_s + targets.overhead_s <= targets.ttft_s or queued <= there * self._prompt(situation):
            return None
        extra = queued / rate / self._drain_s
        return Need(
            workers=extra,
            reason=f"{queued:.0f} prompt tokens wait {wait_s:.3g} s, +{extra:.2f} work them off in {self._drain_s:g} s",
        )

    def _running_need(self, situation: Situation, load: FleetLoad, targets: Targets) -> Need | None:
        """By how many requests there are at once, for certain, and how many a worker may have."""
        context, output = situation.demand.context_tokens, situation.demand.output_tokens
        if not situation.decodes or context is None or output is None:
            return None
        each = self._model.concurrency(context, targets.itl_s / targets.slowness)
        if not each:
            return None
        waiting = load.waiting * min(1.0, output * targets.itl_s / self._drain_s)
        sure = max(0.0, load.running + waiting - 2 * math.sqrt(load.running + waiting))
        return Need(
            workers=at_once_workers(sure, each),
            reason=f"{load.running:.0f} run and {load.waiting:.0f} wait, a worker may have {each:.1f} at once",
        )

    def _pressure(self, situation: Situation, targets: Targets) -> str:
        """What shows that there are too few, with those that start; "": nothing."""
        load, traffic, relief = situation.load, situation.traffic, situation.relief
        if not situation.ready:
            return ""
        if load is not None and load.kv_usage * relief > _KV_FULL:
            return f"{load.kv_usage:.0%} of the KV blocks are in use"
        if situation.decodes and load is not None and load.waiting * relief > situation.ready:
            return f"{load.waiting:.0f} requests wait for {situation.ready} workers"
        ttft_s = traffic.ttft_s
        if situation.prefills and ttft_s is not None and ttft_s * relief > targets.ttft_s and self._waits(situation):
            return f"TTFT {ttft_s:.3g} s, the target is {targets.ttft_s:.3g} s"
        itl_s = traffic.itl_s
        crowded = load is None or load.running > situation.ready
        if situation.decodes and itl_s is not None and itl_s * relief > targets.itl_s and crowded:
            return f"ITL {itl_s * 1000:.3g} ms, the target is {targets.itl_s * 1000:.3g} ms"
        return ""

    def _waits(self, situation: Situation) -> bool:
        """Whether prompts wait for each other, so that more workers would help."""
        load = situation.load
        if load is None:
            return True
        queued = self._queued_tokens(situation)
        if queued is None:
            return load.waiting > 0
        return load.waiting > 0 or queued > situation.ready * self._prompt(situation)

    def _enough(self, situation: Situation, targets: Targets, now_s: float) -> Iterator[Need]:
        """Numbers of workers of which the highest is enough whatever the arrivals are by chance."""
        demand, load = situation.demand, situation.load
        shortage = self._remembered(situation, now_s)
        if shortage is not None:
            reason = f"{shortage.workers} were not enough for {shortage.requests_per_s:.3g} req/s"
            yield Need(workers=shortage.workers + 1, reason=reason)
        need = role_need(situation.role, demand.at(demand.at_most_per_s), self._model, targets)
        yield need if need is not None else self._one_fewer(situation, targets)
        if load is None:
            return
        running = self._running_need(situation, load, targets)
        if running is not None:
            yield running
        yield Need(workers=situation.ready * load.kv_usage / _KV_AIM, reason=f"{load.kv_usage:.0%} of KV blocks in use")
        if load.running + load.waiting:
            yield Need(workers=1, reason="requests are there")

    def _one_fewer(self, situation: Situation, targets: Targets) -> Need:
        """Where no model tells: one worker fewer, if latencies would be far enough from the targets then."""
        counted = situation.counted
        obstacle = self._tight(situation, targets) if counted > 1 else "requests come"
        if obstacle:
            return Need(workers=counted, reason=obstacle)
        return Need(workers=counted - 1, reason="latencies are far from the targets")

    def _tight(self, situation: Situation, targets: Targets) -> str:
        """What would be too much for one worker fewer, if latencies grew as the load of each; "": nothing."""
        load, traffic = situation.load, situation.traffic
        if load is not None and load.waiting > 0:
            return f"{load.waiting:.0f} requests wait"
        more = situation.counted / (situation.counted - 1)
        ttft_s, itl_s = traffic.ttft_s, traffic.itl_s
        if situation.prefills and ttft_s is not None and ttft_s * more > _LATENCY_AIM * targets.ttft_s:
            return f"TTFT {ttft_s:.3g} s might become {ttft_s * more:.3g} s with one fewer"
        if situation.decodes and itl_s is not None and itl_s * more > _LATENCY_AIM * targets.itl_s:
            return f"ITL {itl_s * 1000:.3g} ms might become {itl_s * more * 1000:.3g} ms with one fewer"
        return ""

    def _remembered(self, situation: Situation, now_s: float) -> _Shortage | None:
        shortage = self._shortages.get(situation.role)
        if shortage is None:
            return None
        less = situation.demand.requests_per_s < _LESS * shortage.requests_per_s
        if less or not situation.demand.requests_per_s or not 0 <= now_s - shortage.at_s < _FORGET_S:
            del self._shortages[situation.role]
            return None
        return shortage

    def _queued_tokens(self, situation: Situation) -> float | None:
        """Of prompts without an output yet, those that are not cached, as far as one can tell."""
        load, demand = situation.load, situation.demand
        if load is None or demand.prefill_tokens is None or not demand.prompt_tokens:
            return None
        if load.prefill_tokens is None:
            return load.waiting * demand.prefill_tokens
        return load.prefill_tokens * demand.prefill_tokens / demand.prompt_tokens

    def _prompt(self, situation: Situation) -> float:
        return situation.demand.prefill_tokens or 0.0

    def _prefill_rate(self, situation: Situation) -> float | None:
        tokens = situation.demand.prefill_tokens
        return self._model.prefill_tokens_per_s(tokens) if tokens else None


def _whole(workers: float) -> int:
    return math.ceil(workers - _ROUNDING)
