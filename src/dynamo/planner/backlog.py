"""Work that has piled up, beyond what arrivals bring. Pure.

It is to be worked off within `drain_s`, in which workers stay anyway: sooner would take workers that are of no use
when they are there.
"""

import math

from dynamo.planner.concurrency import positive, prompt_s, room
from dynamo.planner.need import Need, Targets, at_once_workers
from dynamo.planner.perf_model import PerfModel
from dynamo.planner.situation import Situation
from dynamo.protocols.model_card import WorkerType

_CHANCE_SIGMAS = 2.0  # that the number of requests at once scatters by


def prompts_need(situation: Situation, model: PerfModel, targets: Targets, drain_s: float) -> Need | None:
    """Workers for prompts that wait too long, beside those for new ones. None: none do, or too little is known."""
    queued, tokens = situation.queued_tokens, situation.prompt_tokens
    rate = positive(model.prefill_tokens_per_s(tokens)) if tokens else None
    alone_s = model.prefill_s(tokens)
    if not queued or rate is None or alone_s is None:
        return None
    there = max(situation.ready + situation.coming, 1)
    wait_s = queued / (there * rate)
    if wait_s + alone_s + targets.overhead_s <= targets.ttft_s or queued <= there * tokens:
        return None
    extra = queued / rate / drain_s
    return Need(
        workers=extra,
        reason=f"{queued:.0f} prompt tokens wait {wait_s:.3g} s, +{extra:.2f} work them off in {drain_s:g} s",
    )


def requests_need(
    situation: Situation, model: PerfModel, targets: Targets, *, steady_per_s: float, drain_s: float
) -> Need | None:
    """Workers for the requests that there are at once, for certain: those that arrivals explain, and of the rest what
    is to be done at the same time so that all of it is in time.

    `drain_s` of 0: all of them, now. None: too little is known.
    """
    load, output = situation.load, situation.demand.output_tokens
    interrupted_s = prompt_s(situation.demand, model) if situation.role is WorkerType.Aggregated else 0.0
    if load is None or output is None or interrupted_s is None or not situation.decodes:
        return None
    each = room(situation.demand, model, targets.itl_s / targets.slowness, interrupted_s)
    if each is None:
        return None
    requests = load.running + load.waiting
    sure = max(0.0, requests - _CHANCE_SIGMAS * math.sqrt(requests))
    lasts_s = output * each.itl_s * targets.slowness
    steady = min(sure, steady_per_s * lasts_s)
    at_once = steady + (sure - steady) * (min(1.0, lasts_s / drain_s) if drain_s else 1.0)
    workers = at_once_workers(at_once, each.requests)
    there_are = f"{load.running:.0f} run, {load.waiting:.0f} wait"
    return Need(workers=workers, reason=f"{there_are}: {at_once:.0f} at once / {each.requests:.1f} = {workers:.2f}")
