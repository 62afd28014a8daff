"""What one role needs: prefill, decode, or both of it. Pure."""

from dynamo.planner.concurrency import prompt_s
from dynamo.planner.demand import Demand
from dynamo.planner.need import Need, Targets, decode_need, prefill_need
from dynamo.planner.perf_model import PerfModel
from dynamo.protocols.model_card import WorkerType


def role_need(role: WorkerType, demand: Demand, model: PerfModel, targets: Targets) -> Need | None:
    """None: too little is known. Of workers that do all of a request the prompts come between the others' tokens."""
    if role is WorkerType.Decode:
        return decode_need(demand, model, targets)
    prefill = prefill_need(demand, model, targets)
    if role is WorkerType.Prefill or not demand.requests_per_s:
        return prefill
    interrupted_s = prompt_s(demand, model)
    decode = None if interrupted_s is None else decode_need(demand, model, targets, interrupted_s)
    if prefill is None or decode is None:
        return None
    return max(decode, prefill, key=lambda need: need.workers)
