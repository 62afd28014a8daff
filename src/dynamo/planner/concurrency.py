"""How many requests at once a worker may have. Pure.

A worker that does all of a request computes prompts between the steps that generate tokens. Of n requests on it, each
brings its prompt, which takes P seconds, once in its o tokens: so n·P/o of them come between two tokens of everybody,
and the time between tokens is

    itl(n) + n·P/o
"""

import math
from dataclasses import dataclass

from dynamo.planner.bisection import highest
from dynamo.planner.demand import Demand
from dynamo.planner.perf_model import PerfModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What one worker has for requests."""

    requests: float  # at once, at least 1
    itl_s: float  # that they have then


def room(demand: Demand, model: PerfModel, itl_s: float, interrupted_s: float) -> Room | None:
    """For as many as have tokens every `itl_s`; `interrupted_s`: by the prompt of each. None: too little is known."""
    context = demand.context_tokens
    requests = None if context is None else positive(model.concurrency(context, itl_s))
    if requests is None:
        return None
    if interrupted_s and requests > 1:

        def is_kept(at_once: float) -> bool:
            reached_s = _reached_s(demand, model, at_once, interrupted_s)
            return reached_s is not None and reached_s <= itl_s

        requests = highest(1.0, requests, is_kept)
    reached_s = _reached_s(demand, model, requests, interrupted_s)
    return None if reached_s is None else Room(requests=requests, itl_s=reached_s)


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
