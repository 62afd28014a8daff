"""What one role needs: prefill, decode, or both of it. Pure."""

from dynamo.planner.demand import Demand
from dynamo.planner.need import Need, Targets, decode_need, prefill_need
from dynamo.planner.perf_model import PerfModel
from dynamo.protocols.model_card import WorkerType


def role_need(role: WorkerType, demand: Demand, model: PerfModel, targets: Targets) -> Need | None:
    """None: too little is known. A worker that does all of a request needs time for either, so that needs add up."""
    if role is WorkerType.Prefill:
        return prefill_need(demand, model, targets)
    decode = decode_need(demand, model, targets)
    if role is WorkerType.Decode:
        return decode
    prefill = prefill_need(demand, model, targets)
    if prefill is None or decode is None:
        return None
    return Need(workers=prefill.workers + decode.workers, reason=f"{prefill.reason}; {decode.reason}")
