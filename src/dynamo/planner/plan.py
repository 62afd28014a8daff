"""One role on its way through a tick. Pure."""

from dataclasses import dataclass, field

from dynamo.planner.bounds import Bounds
from dynamo.planner.decision import RoleDecision
from dynamo.planner.observation import Fleet
from dynamo.planner.reconcile import Standing
from dynamo.protocols.model_card import WorkerType


@dataclass(slots=True, kw_only=True, eq=False)
class RolePlan:
    """Each stage fills in its part and says why."""

    role: WorkerType
    fleet: Fleet
    bounds: Bounds
    standing: Standing
    throughput: int | None = None
    load: int | None = None
    floor: int | None = None  # fewer were not enough lately; None: nothing is known, so that all stay
    target: int = 0
    withheld: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def counted(self) -> int:
        """Workers that are or will be of use: all but those that have been starting for too long."""
        return self.fleet.desired - self.standing.stuck

    @property
    def coming(self) -> int:
        """Of those that start, as many as there is reason to expect."""
        return max(0, len(self.fleet.starting_s) - self.standing.stuck)

    @property
    def wanted(self) -> int:
        """What both policies want, within the bounds; replacements for workers that fail to start among them.

        Not more replacements than workers are needed: what fails twice would fail more often too.
        """
        proposals = [proposal for proposal in (self.throughput, self.load) if proposal is not None]
        if not proposals:
            return self.bounds.clamp(self.fleet.desired)
        needed = self.bounds.clamp(max(proposals))
        return self.bounds.clamp(needed + min(self.standing.stuck, needed))

    def told(self) -> RoleDecision:
        return RoleDecision(
            role=self.role,
            ready=self.fleet.ready,
            current=self.fleet.desired,
            throughput=self.throughput,
            load=self.load,
            wanted=self.wanted,
            target=self.target,
            withheld=self.withheld,
            reasons=tuple(self.reasons),
        )
