"""A number of GPUs that is never exceeded. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from dynamo.errors import ConfigError
from dynamo.planner.bounds import role_bounds
from dynamo.planner.config import PlannerOptions
from dynamo.protocols.model_card import WorkerType


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Of one role: so many workers, and of them so many in any case."""

    workers: int
    gpus: int  # of each
    least: int = 0


def check_budget(options: PlannerOptions, roles: frozenset[WorkerType]) -> None:
    """Raises ConfigError when the budget does not suffice for the fewest workers of these roles."""
    if options.gpu_budget is None:
        return
    bounds = [role_bounds(options, role) for role in roles]
    needed = sum(bound.least * bound.gpus for bound in bounds)
    if needed > options.gpu_budget:
        raise ConfigError(
            f"the fewest {' and '.join(sorted(roles, reverse=True))} workers have {needed} GPUs,"
            f" --gpu-budget is {options.gpu_budget}"
        )


def share(budget: int, wishes: Mapping[WorkerType, Wish]) -> dict[WorkerType, int]:
    """Workers of each role that have no more than `budget` GPUs together.

    Each keeps its least (as far as that goes), and of the rest all get the same share of what they wish for; what is
    left by rounding down goes to those who lost most by it.
    """
    if sum(wish.workers * wish.gpus for wish in wishes.values()) <= budget:
        return {role: wish.workers for role, wish in wishes.items()}
    kept = {role: min(wish.least, wish.workers) for role, wish in wishes.items()}
    left = budget - sum(kept[role] * wish.gpus for role, wish in wishes.items())
    if left < 0:
        kept, left = dict.fromkeys(wishes, 0), budget
    further = {role: wish.workers - kept[role] for role, wish in wishes.items()}
    wished = sum(workers * wishes[role].gpus for role, workers in further.items())
    given = {role: workers * left // wished for role, workers in further.items()}
    spare = left - sum(given[role] * wish.gpus for role, wish in wishes.items())
    for role in sorted(wishes, key=lambda role: (-(further[role] * left % wished), role)):
        if wishes[role].gpus <= spare and given[role] < further[role]:
            given[role] += 1
            spare -= wishes[role].gpus
    return {role: kept[role] + given[role] for role in wishes}
