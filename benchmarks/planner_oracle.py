"""The fleet of one who knows what will come: as many workers as the arrivals of each moment are going to need."""

import math
from collections.abc import Mapping, Sequence

from benchmarks.planner_fleets import Workers
from benchmarks.planner_loads import Load
from dynamo.planner.decision import Action, Decision, RoleDecision, Scale
from dynamo.planner.observation import Observation
from dynamo.planner.profile import Profile
from dynamo.protocols.model_card import WorkerType

_MOMENT_S = 10.0


class Need:
    """How many workers of each role the arrivals keep busy, moment by moment."""

    def __init__(self, load: Load, profile: Profile, *, disaggregated: bool) -> None:
        self.width_s = _MOMENT_S
        self.moments = math.ceil(load.duration_s / self.width_s)
        prefill_s, decode_s = [0.0] * self.moments, [0.0] * self.moments
        prefill_per_s, decode_per_s = _prefill_per_s(profile), _decode_per_s(profile, load)
        for request, time_s in zip(load.requests, load.times_s, strict=True):
            moment = min(int(time_s / self.width_s), self.moments - 1)
            prefill_s[moment] += request.prompt_tokens / prefill_per_s
            decode_s[moment] += request.output_tokens / decode_per_s
        busy_s: dict[WorkerType, Sequence[float]] = {WorkerType.Prefill: prefill_s, WorkerType.Decode: decode_s}
        if not disaggregated:
            both = [prefill + decode for prefill, decode in zip(prefill_s, decode_s, strict=True)]
            busy_s = {WorkerType.Aggregated: both}
        self.workers: Mapping[WorkerType, Sequence[float]] = {
            role: [seconds / self.width_s for seconds in its] for role, its in busy_s.items()
        }

    def between(self, begin_s: float, end_s: float, headroom: float) -> Workers:
        """The most that any moment in between needs, times `headroom`, rounded up; at least one."""
        first = min(int(begin_s / self.width_s), self.moments - 1)
        last = min(int(end_s / self.width_s), self.moments - 1)
        return {
            role: max(1, math.ceil(headroom * max(needs[first : last + 1]))) for role, needs in self.workers.items()
        }

    def peak(self, headroom: float) -> Workers:
        """The most that any moment needs."""
        return self.between(0.0, self.moments * self.width_s, headroom)

    def mean(self, headroom: float) -> Workers:
        """What a moment needs on average."""
        return {role: max(1, math.ceil(headroom * sum(needs) / len(needs))) for role, needs in self.workers.items()}


class Oracle:
    """In the planner's place: orders workers in time for when they are needed, and ends them when they are not."""

    def __init__(self, need: Need, headroom: float, lead_s: float) -> None:
        """`lead_s`: from an order until the worker is ready, at most."""
        self._need = need
        self._headroom = headroom
        self._lead_s = lead_s
        self._number = 0

    def tick(self, observation: Observation) -> Decision:
        now_s, fleets = observation.now_s, observation.fleets
        assert fleets is not None
        wanted = self._need.between(now_s, now_s + self._lead_s, self._headroom)
        self._number += 1
        roles = tuple(
            RoleDecision(role=role, ready=fleets[role].ready, current=fleets[role].desired, target=target)
            for role, target in wanted.items()
        )
        actions: tuple[Action, ...] = tuple(
            Scale(role=role.role, workers=role.target) for role in roles if role.target != role.current
        )
        return Decision(number=self._number, at_s=now_s, roles=roles, actions=actions)


def _prefill_per_s(profile: Profile) -> float:
    """Prompt tokens that a worker computes in a second."""
    return max(point.tokens_per_s for point in profile.prefill)


def _decode_per_s(profile: Profile, load: Load) -> float:
    """Tokens that a worker generates in a second within the target, at about the load's mean context."""
    requests = load.requests
    context_tokens = sum(request.prompt_tokens + request.output_tokens / 2 for request in requests) / len(requests)
    nearest = min({point.context_tokens for point in profile.decode}, key=lambda known: abs(known - context_tokens))
    points = [point for point in profile.decode if point.context_tokens == nearest]
    return max(point.tokens_per_s for point in points if point.itl_s <= load.targets.tpot_s)
