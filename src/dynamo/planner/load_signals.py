"""How busy a fleet is, by what its workers say. Pure."""

from dataclasses import dataclass

from dynamo.planner.observation import Fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLoad:
    """Sums over the whole fleet; where some workers did not tell, as if they were like the others."""

    running: float
    waiting: float
    prefill_tokens: float | None  # of prompts without an output yet, whole. None: nobody tells
    kv_usage: float  # mean share of blocks in use; 0 where nobody has blocks


def fleet_load(fleet: Fleet) -> FleetLoad | None:
    """None: no worker told."""
    loads = list((fleet.loads or {}).values())
    if not loads:
        return None
    unheard = max(1.0, fleet.ready / len(loads))  # ranks of one worker tell separately, so never less than 1
    telling = [load.prefill_tokens for load in loads if load.prefill_tokens is not None]
    blocks = sum(load.kv_total_blocks for load in loads)
    return FleetLoad(
        running=unheard * sum(load.running_requests for load in loads),
        waiting=unheard * sum(load.waiting_requests for load in loads),
        prefill_tokens=unheard * sum(telling) if telling else None,
        kv_usage=sum(load.kv_used_blocks for load in loads) / blocks if blocks else 0.0,
    )
