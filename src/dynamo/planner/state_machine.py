"""The planner: observations in, decisions out. Pure.

Each tick, for each role: what the throughput policy (the floor) and the load policy want, within the bounds; as much of
it as the budget has for all roles; fewer only after the cool-down. What becomes of it, and why, is in the decision.
"""

from collections.abc import Callable

from dynamo.errors import ConfigError
from dynamo.planner.actions import plan_actions
from dynamo.planner.bounds import role_bounds
from dynamo.planner.budget import check_budget
from dynamo.planner.config import PlannerOptions
from dynamo.planner.cool_down import CoolDown
from dynamo.planner.decision import Action, Convert, Decision, Forecast
from dynamo.planner.forecast.base import Forecaster
from dynamo.planner.intake import Gate, Intake
from dynamo.planner.observation import Fleet, Observation, Traffic
from dynamo.planner.perf_model import PerfModel
from dynamo.planner.plan import RolePlan
from dynamo.planner.policies import Policies
from dynamo.planner.reconcile import Ledger
from dynamo.planner.targets import set_targets
from dynamo.protocols.model_card import WorkerType


class Planner:
    """Never raises for what it observes; what makes no sense holds the fleets as they are."""

    def __init__(
        self,
        options: PlannerOptions,
        model: PerfModel,
        make_forecaster: Callable[[], Forecaster],
        *,
        converts: bool = False,
        learn: Callable[[Observation], None] | None = None,
    ) -> None:
        """`converts`: the connector carries out Convert; `learn` gets what made sense of each observation.

        Raises ConfigError for a budget that is too small for any deployment.
        """
        check_budget(options, frozenset({WorkerType.Decode}))
        self._options = options
        self._converts = converts and options.convert_roles
        self._learn = learn
        self._policies = Policies(options, model, make_forecaster)
        self._gate = Gate()
        self._ledgers: dict[WorkerType, Ledger] = {}
        self._cool_downs: dict[WorkerType, CoolDown] = {}
        self._number = 0

    def tick(self, observation: Observation) -> Decision:
        """What to do now. The caller carries out the actions, in their order, before it observes again."""
        self._number += 1
        intake = self._gate.check(observation)
        if intake.fleets is None:
            return self._told(intake, [], ())
        now_s = intake.now_s
        plans = [self._plan(role, fleet, now_s) for role, fleet in intake.fleets.items()]
        if not intake.held and intake.traffic is not None:
            if self._learn is not None:
                self._learn(Observation(now_s=now_s, traffic=intake.traffic, fleets=intake.fleets))
            self._policies.propose(plans, intake.traffic, now_s)
            for plan in plans:
                plan.floor = self._cool_downs[plan.role].floor(plan.wanted, plan.fleet.desired, now_s)
        set_targets(plans, self._options.gpu_budget)
        actions = plan_actions(plans, self._options.gpu_budget, converts=self._converts)
        if not self._options.advisory:
            self._remember(plans, actions, now_s)
        return self._told(intake, plans, actions)

    def _budget_problem(self, plans: list[RolePlan]) -> tuple[str, ...]:
        """Only now it is known which roles there are."""
        try:
            check_budget(self._options, frozenset(plan.role for plan in plans))
        except ConfigError as error:
            return (str(error),)
        return ()

    def _plan(self, role: WorkerType, fleet: Fleet, now_s: float) -> RolePlan:
        if role not in self._ledgers:
            self._ledgers[role] = Ledger(role, self._options.start_timeout_s)
            self._cool_downs[role] = CoolDown(self._options.scale_down_delay_s)
        standing = self._ledgers[role].compare(fleet, now_s)
        plan = RolePlan(role=role, fleet=fleet, bounds=role_bounds(self._options, role), standing=standing)
        if standing.changed_from is not None:
            self._cool_downs[role].restart(fleet.desired, now_s)
        return plan

    def _remember(self, plans: list[RolePlan], actions: tuple[Action, ...], now_s: float) -> None:
        """Each role's orders as its connector will show them: after a conversion the numbers have changed too."""
        numbers = {plan.role: plan.fleet.desired for plan in plans}
        for action in actions:
            if isinstance(action, Convert):
                numbers[action.source] -= action.workers
                numbers[action.destination] += action.workers
                changed = [action.source, action.destination]
            else:
                numbers[action.role] = action.workers
                changed = [action.role]
            for role in changed:
                self._ledgers[role].ordered(numbers[role], now_s)

    def _told(self, intake: Intake, plans: list[RolePlan], actions: tuple[Action, ...]) -> Decision:
        traffic, forecast = intake.traffic, self._policies.forecast
        return Decision(
            number=self._number,
            at_s=intake.now_s,
            observed=None if traffic is None else _told(traffic),
            forecast=None if forecast is None else forecast.told(),
            ttft_s=None if traffic is None else traffic.ttft_s,
            itl_s=None if traffic is None else traffic.itl_s,
            roles=tuple(plan.told() for plan in plans),
            held=intake.held,
            problems=(
                *intake.problems,
                *self._budget_problem(plans),
                *(problem for plan in plans for problem in plan.standing.problems),
            ),
            actions=actions,
        )


def _told(traffic: Traffic) -> Forecast:
    prompt = traffic.prompt_tokens or 0.0
    return Forecast(
        requests_per_s=traffic.requests / traffic.duration_s,
        prompt_tokens=prompt - (traffic.cached_tokens or 0.0),
        output_tokens=traffic.output_tokens or 0.0,
    )
