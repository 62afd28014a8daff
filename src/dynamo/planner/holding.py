"""What decides until the policies are there: nothing."""

from dynamo.planner.decision import Decision
from dynamo.planner.observation import Observation


class HoldingPlanner:
    """Leaves everything as it is."""

    def __init__(self) -> None:
        self._number = 0

    def tick(self, observation: Observation) -> Decision:
        self._number += 1
        return Decision(
            number=self._number,
            at_s=observation.now_s,
            held="there are no policies yet",
            problems=observation.problems,
        )


def explain(decision: Decision) -> str:
    return f"decision {decision.number}: held, {decision.held}" + "".join(f"; {p}" for p in decision.problems)
