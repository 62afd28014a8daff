"""The planner as it runs: observes, has it decided, tells, carries out; again and again."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from dynamo.errors import DynamoError
from dynamo.planner.connectors.base import Connector
from dynamo.planner.decision import Action, Convert, Decision, Scale
from dynamo.planner.decisions import Decisions
from dynamo.planner.explanation import described, explain
from dynamo.planner.observation import Observation
from dynamo.planner.recorded import record
from dynamo.telemetry.planner_metrics import PlannerMetrics

logger = logging.getLogger(__name__)


class Planner(Protocol):
    """What decides."""

    def tick(self, observation: Observation) -> Decision: ...


class Observer(Protocol):
    """What is decided upon."""

    async def observe(self, problems: list[str]) -> Observation: ...


class PlannerLoop:
    """One decision in each interval. One that takes longer is finished, and those that it has missed are left out."""

    def __init__(
        self,
        planner: Planner,
        source: Observer,
        connector: Connector,
        decisions: Decisions,
        metrics: PlannerMetrics,
        *,
        interval_s: float,
        connector_timeout_s: float,
        advisory: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`advisory`: nothing is carried out."""
        self._planner = planner
        self._source = source
        self._connector = connector
        self._decisions = decisions
        self._metrics = metrics
        self._interval_s = interval_s
        self._connector_timeout_s = connector_timeout_s
        self._advisory = advisory
        self._clock = clock
        self._problems: list[str] = []  # for the next observation
        self._last_said: tuple[object, ...] = ()

    async def run(self) -> None:
        """Until it is cancelled."""
        await self._source.observe([])  # what only grows tells something from the second look on
        next_s = self._clock() + self._interval_s
        while True:
            await asyncio.sleep(next_s - self._clock())
            await self.tick()
            next_s = self._next_s(next_s)

    async def tick(self) -> None:
        """One decision, whatever goes wrong."""
        problems, self._problems = self._problems, []
        try:
            observation = await self._source.observe(problems)
            self._count_missing(observation)
            decision = self._planner.tick(observation)
            self._tell(decision)
            if not self._advisory:
                await self._carry_out(decision)
        except Exception as error:  # the boundary of a decision: the next one may succeed
            logger.exception("no decision could be made")
            self._fail("decision", f"the last decision was ended by a defect: {type(error).__name__}: {error}")

    def _next_s(self, last_s: float) -> float:
        """When the next decision is due: whole intervals after the last one, and not in the past."""
        late_s = self._clock() - last_s
        skipped = int(late_s / self._interval_s)
        if skipped:
            self._metrics.skipped.inc(skipped)
            self._problems.append(
                f"the last decision took {late_s:.1f} s, {skipped} {'was' if skipped == 1 else 'were'} left out"
            )
        return last_s + (skipped + 1) * self._interval_s

    def _tell(self, decision: Decision) -> None:
        record(self._metrics, decision)
        self._decisions.add(decision)
        # Not each quiet decision is worth a line: what was done, and what is wrong for as long as it changes.
        said = (decision.held, decision.problems)
        is_news = bool(decision.actions) or said != self._last_said
        self._last_said = said
        logger.log(logging.INFO if is_news else logging.DEBUG, "%s", explain(decision))

    async def _carry_out(self, decision: Decision) -> None:
        """In this order: what comes later may need what comes first, so nothing is done after a failure."""
        for action in decision.actions:
            try:
                async with asyncio.timeout(self._connector_timeout_s):
                    await self._connector.apply(action)
            except (DynamoError, TimeoutError) as error:
                said = str(error) or f"no answer within {self._connector_timeout_s:g} s"
                self._fail("apply", f"{described(action)}: {said}")
                return
            self._metrics.actions.labels(*_labels(action)).inc()

    def _count_missing(self, observation: Observation) -> None:
        for stage, seen in (("traffic", observation.traffic), ("workers", observation.fleets)):
            if seen is None:
                self._metrics.errors.labels(stage).inc()

    def _fail(self, stage: str, problem: str) -> None:
        self._metrics.errors.labels(stage).inc()
        self._problems.append(problem)


def _labels(action: Action) -> tuple[str, str]:
    """Role and kind of action."""
    match action:
        case Scale(role=role):
            return role.value, "scale"
        case Convert(destination=destination):
            return destination.value, "convert"
