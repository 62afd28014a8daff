"""What carries out a planner's actions in virtual time."""

from collections.abc import Mapping

from dynamo.planner.decision import Action, Scale
from dynamo.planner.observation import Fleet
from dynamo.protocols.model_card import WorkerType
from dynamo.simulator.elastic_fleet import ElasticFleet


class SimulatedConnector:
    """A Connector without tasks: nothing here waits."""

    converts = False

    def __init__(self, fleets: Mapping[WorkerType, ElasticFleet]) -> None:
        self._fleets = fleets

    def fleets(self, now_s: float) -> dict[WorkerType, Fleet]:
        """Without loads."""
        return {role: fleet.state(now_s) for role, fleet in self._fleets.items()}

    def apply(self, action: Action, now_s: float) -> None:
        """Raises ValueError for what it does not do."""
        if not isinstance(action, Scale):
            raise ValueError(f"simulated workers keep their role: {action}")
        self._fleets[action.role].scale(action.workers, now_s)
