"""What the cool-down, workers under way and the budget leave of what is wanted. Pure."""

import math
from collections.abc import Mapping, Sequence

from dynamo.planner.budget import Wish, share
from dynamo.planner.plan import RolePlan
from dynamo.protocols.model_card import WorkerType


def set_targets(plans: Sequence[RolePlan], budget: int | None) -> None:
    """Fills in each plan's `target`: within its bounds, and all together within the budget."""
    for plan in plans:
        plan.target = plan.bounds.clamp(_calmly(plan))
    if budget is None or sum(plan.target * plan.bounds.gpus for plan in plans) <= budget:
        return
    wishes = {plan.role: Wish(workers=plan.wanted, gpus=plan.bounds.gpus, least=plan.bounds.least) for plan in plans}
    _give_up(plans, share(budget, wishes), budget)


def _calmly(plan: RolePlan) -> int:
    """More at once; fewer one at a time, after the cool-down, and not while workers start or end."""
    desired = plan.fleet.desired
    if plan.floor is None:
        return plan.standing.ordered
    if plan.wanted >= desired:
        return plan.wanted
    if plan.floor >= desired:
        plan.reasons.append(f"{desired} stay for now: {plan.floor} were wanted lately")
        return desired
    if plan.standing.draining or plan.coming:
        plan.reasons.append(f"{desired} stay while {plan.coming} start and {plan.standing.draining} end")
        return desired
    return desired - 1


def _give_up(plans: Sequence[RolePlan], allowed: Mapping[WorkerType, int], budget: int) -> None:
    """Who has more than its share gives up as much as is needed, whatever the cool-down says."""
    for plan in sorted(plans, key=lambda plan: allowed[plan.role] - plan.target):
        excess = sum(each.target * each.bounds.gpus for each in plans) - budget
        given_up = min(plan.target - allowed[plan.role], math.ceil(excess / plan.bounds.gpus))
        if given_up > 0:
            plan.target -= given_up
            plan.withheld = max(0, plan.wanted - plan.target)
            plan.reasons.append(f"the budget of {budget} GPUs leaves {plan.target} of {plan.target + given_up}")
