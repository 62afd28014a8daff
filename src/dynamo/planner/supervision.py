"""What the supervisor of `dynamo serve` tells a planner, and is told by it."""

from collections.abc import Iterator

import msgspec

from dynamo.planner.observation import Fleet
from dynamo.protocols.model_card import WorkerType

SUPERVISOR_COMPONENT = "supervisor"
FLEETS_ENDPOINT = "fleets"  # asked anything, it answers with SupervisedFleets
SCALE_ENDPOINT = "scale"  # given a planner.decision.Action, it answers with SupervisedFleets as soon as it has begun


class SupervisedFleet(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The workers of one role; the fields are those of planner.observation.Fleet."""

    role: WorkerType
    desired: int
    ready: int = 0
    starting_s: tuple[float, ...] = ()
    draining: int = 0


class SupervisedFleets(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """All workers of a deployment's own."""

    fleets: tuple[SupervisedFleet, ...]
    converts: bool = False  # whether workers can turn from one role to another
    problems: tuple[str, ...] = ()  # what is wrong with single workers

    def observed(self) -> Iterator[tuple[WorkerType, Fleet]]:
        """As the planner sees them."""
        for fleet in self.fleets:
            yield (
                fleet.role,
                Fleet(desired=fleet.desired, ready=fleet.ready, starting_s=fleet.starting_s, draining=fleet.draining),
            )
