"""The load policy: how many workers are needed by how things are now. Seconds. Pure.

Arrivals scatter, so that it knows two numbers of workers: what those of the last seconds need for certain, and what
they can need at most. Who has fewer than the first gets as many at once. More than the second are not kept beyond the
cool-down. In between nothing is done, unless queues, caches or latencies show that there are too few: then the second
is right.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from dynamo.planner.backlog import prompts_need, requests_need
from dynamo.planner.need import Need, Targets, whole
from dynamo.planner.perf_model import PerfModel
from dynamo.planner.pressure import pressure, tightness
from dynamo.planner.role_need import role_need
from dynamo.planner.shortages import Shortages
from dynamo.planner.situation import Situation

_KV_AIM = 0.75  # with fewer workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    workers: int
    reason: str


class LoadPolicy:
    """Remembers when latencies showed that a number of workers was too small, so as not to try it again and again."""

    def __init__(self, model: PerfModel, drain_s: float) -> None:
        """`drain_s`: within which a backlog is to be worked off: for so long more workers stay anyway."""
        self._model = model
        self._drain_s = drain_s
        self._shortages = Shortages(drain_s)

    def propose(self, situation: Situation, targets: Targets, now_s: float) -> Proposal:
        """As many as are certainly needed, as can be needed where there are too few, or as are enough."""
        counted = situation.counted
        steady = self._shortages.is_steady(situation, now_s)
        least = self._need(situation, targets, situation.demand.at_least_per_s)
        if least is not None and whole(least.workers) > counted:
            return Proposal(workers=whole(least.workers), reason=least.reason)
        most = self._need(situation, targets, situation.demand.at_most_per_s)
        shown = pressure(situation, targets)
        if shown and most is not None and whole(most.workers) > counted:
            return Proposal(workers=whole(most.workers), reason=f"{shown}; {most.reason}")
        if shown and most is not None and situation.coming:
            return Proposal(workers=counted, reason=f"{shown}, but {situation.coming} start")
        if shown:
            if steady or most is None:  # where no model tells, there is nothing better to go by
                self._shortages.remember(situation, now_s)
            return Proposal(workers=counted + 1, reason=shown)
        enough = max(self._enough(situation, targets, most, now_s), key=lambda need: need.workers)
        if whole(enough.workers) >= counted:
            return Proposal(workers=counted, reason=enough.reason)
        return Proposal(workers=whole(enough.workers), reason=f"no more are needed: {enough.reason}")

    def _need(self, situation: Situation, targets: Targets, requests_per_s: float) -> Need | None:
        """For arrivals at that rate and what has piled up. None: too little is known."""
        need = role_need(situation.role, situation.demand.at(requests_per_s), self._model, targets)
        if need is None and not situation.counted and situation.demand.requests_per_s:
            return Need(workers=1, reason="requests come, and there is no worker")
        if need is None or situation.load is None:
            return need
        backlog = prompts_need(situation, self._model, targets, self._drain_s) if situation.prefills else None
        if backlog is not None:
            need = Need(workers=need.workers + backlog.workers, reason=f"{need.reason}; {backlog.reason}")
        running = requests_need(situation, self._model, targets, steady_per_s=requests_per_s, drain_s=self._drain_s)
        return running if running is not None and running.workers > need.workers else need

    def _enough(self, situation: Situation, targets: Targets, most: Need | None, now_s: float) -> Iterator[Need]:
        """Numbers of workers of which the highest is enough whatever the arrivals are by chance."""
        load, shortage = situation.load, self._shortages.last(situation, now_s)
        if shortage is not None:
            reason = f"{shortage.workers} were not enough for {shortage.requests_per_s:.3g} req/s"
            yield Need(workers=shortage.workers + 1, reason=reason)
        yield most if most is not None else _one_fewer(situation, targets)
        if load is None:
            return
        running = requests_need(situation, self._model, targets, steady_per_s=0.0, drain_s=0.0)
        if running is not None:
            yield running
        yield Need(workers=situation.ready * load.kv_usage / _KV_AIM, reason=f"{load.kv_usage:.0%} of KV blocks in use")
        if load.running + load.waiting:
            yield Need(workers=1, reason="requests are there")


def _one_fewer(situation: Situation, targets: Targets) -> Need:
    """Where no model tells: one worker fewer, if latencies would be far enough from the targets then."""
    counted = situation.counted
    obstacle = tightness(situation, targets) if counted > 1 else "requests come"
    if obstacle:
        return Need(workers=counted, reason=obstacle)
    return Need(workers=counted - 1, reason="latencies are far from the targets")
