"""How many requests at once a worker may have. Pure.

A worker that does all of a request computes prompts between the steps that generate tokens. Of n requests on it, each
brings its prompt, which takes P seconds, once in its o tokens: so n·P/o of them come between two tokens of everybody,
and the time between tokens is

    itl(n) + n·P/o
"""

import math
from dataclasses import dataclass

from dynamo.planner.demand import Demand
from dynamo.planner.perf_model import PerfModel

_HALVINGS = 40  # of the range in which it is looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What one worker has for requests."""

    requests: float  # at once, at least 1
    itl_s: float  # that they have then


def room(demand: Demand, model: PerfModel, itl_s: float, interrupted_s: float) -> Room | None:
    """For as many as have tokens every `itl_s`; `interrupted_s`: by the prompt of each. None: too little is known."""
    context = demand.context_tokens
    most = None if context is None else positive(model.concurrency(context, itl_s))
    if most is None:
        return None
    keeps, breaks = most if not interrupted_s else 1.0, most
    for _ in range(_HALVINGS if keeps < breaks else 0):
        middle = (keeps + breaks) / 2
        reached_s = _reached_s(demand, model, middle, interrupted_s)
        if reached_s is None:
            return None
        keeps, breaks = (middle, breaks) if reached_s <= itl_s else (keeps, middle)
    reached_s = _reached_s(demand, model, keeps, interrupted_s)
    return None if reached_s is None else Room(requests=keeps, itl_s=reached_s)


def prompt_s(demand: Demand, model: PerfModel) -> float | None:
    """For how long a prompt keeps a worker from all else: computed alone, as where prompts seldom meet."""
    tokens = demand.prefill_tokens
    if tokens is None:
        return None
    return positive(model.prefill_s(tokens)) if tokens else 0.0


def positive(value: float | None) -> float | None:
    """A model's answer, if it is one."""
    return value if value is not None and 0 < value < math.inf else None


def _reached_s(demand: Demand, model: PerfModel, at_once: float, interrupted_s: float) -> float | None:
    context, tokens = demand.context_tokens, demand.output_tokens
    itl_s = None if context is None else positive(model.itl_s(context, at_once))
    if itl_s is None or tokens is None:
        return None
    return itl_s + at_once * interrupted_s / max(tokens, 1.0)
