"""From targets to what is to be done for them now: conversions, then fewer, then more as GPUs are free. Pure."""

from collections.abc import Iterator, Mapping, Sequence

from dynamo.planner.budget import Wish, share
from dynamo.planner.decision import Action, Convert, Scale
from dynamo.planner.plan import RolePlan
from dynamo.protocols.model_card import WorkerType


def plan_actions(plans: Sequence[RolePlan], budget: int | None, *, converts: bool) -> tuple[Action, ...]:
    """May lower the target of a role whose workers are converted."""
    conversion = _conversion(plans) if converts else None
    numbers = {plan.role: plan.fleet.desired for plan in plans}
    if conversion is not None:
        numbers[conversion.source] -= conversion.workers
        numbers[conversion.destination] += conversion.workers
    affordable = _affordable(plans, numbers, budget)
    scales = [
        Scale(role=plan.role, workers=affordable[plan.role])
        for plan in sorted(plans, key=lambda plan: plan.target >= numbers[plan.role])
        if affordable[plan.role] != numbers[plan.role] or plan.standing.ask_again
    ]
    return (*([conversion] if conversion is not None else ()), *scales)


def _conversion(plans: Sequence[RolePlan]) -> Convert | None:
    """When one role lacks workers while another has too many, all at rest, so that nothing is counted twice."""
    if len({plan.bounds.gpus for plan in plans}) != 1 or not all(plan.standing.settled for plan in plans):
        return None
    for source, destination in _pairs(plans):
        lacking = destination.target - destination.fleet.desired
        enough = min(source.target, max(source.wanted, source.bounds.least))
        workers = min(lacking, source.fleet.desired - enough)
        if workers > 0:
            source.target = min(source.target, source.fleet.desired - workers)
            source.reasons.append(f"{workers} of them turn into {destination.role} workers")
            return Convert(source=source.role, destination=destination.role, workers=workers)
    return None


def _pairs(plans: Sequence[RolePlan]) -> Iterator[tuple[RolePlan, RolePlan]]:
    for source in plans:
        for destination in plans:
            if source is not destination and source.floor is not None:
                yield source, destination


def _affordable(
    plans: Sequence[RolePlan], numbers: Mapping[WorkerType, int], budget: int | None
) -> dict[WorkerType, int]:
    """The targets, but no more than what GPUs are free for: those that end still have theirs."""
    if budget is None:
        return {plan.role: plan.target for plan in plans}
    paid = {plan.role: numbers[plan.role] if plan.standing.settled else plan.standing.ordered for plan in plans}
    changed = {plan.role: numbers[plan.role] - plan.fleet.desired for plan in plans}  # by a conversion: same GPUs
    free = budget - sum((plan.standing.held + changed[plan.role]) * plan.bounds.gpus for plan in plans)
    lacks = {plan.role: Wish(workers=max(0, plan.target - paid[plan.role]), gpus=plan.bounds.gpus) for plan in plans}
    granted = share(max(free, 0), lacks)
    for plan in plans:
        late = lacks[plan.role].workers - granted[plan.role]
        if late:
            plan.withheld += late
            plan.reasons.append(f"{late} of {plan.target} have to wait until GPUs are free")
    return {plan.role: min(plan.target, paid[plan.role] + granted[plan.role]) for plan in plans}
