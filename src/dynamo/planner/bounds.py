"""Within which bounds a role's workers are, and what they cost. Pure."""

from dataclasses import dataclass

from dynamo.planner.config import PlannerOptions
from dynamo.protocols.model_card import WorkerType


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Of one role."""

    least: int
    most: int
    gpus: int  # of each worker

    def clamp(self, workers: int) -> int:
        return min(max(workers, self.least), self.most)


def role_bounds(options: PlannerOptions, role: WorkerType) -> Bounds:
    """Workers that do all of a request have those of decode workers."""
    if role is WorkerType.Prefill:
        return Bounds(least=options.min_prefill_workers, most=options.max_prefill_workers, gpus=options.prefill_gpus)
    return Bounds(least=options.min_decode_workers, most=options.max_decode_workers, gpus=options.decode_gpus)
