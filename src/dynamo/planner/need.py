"""How many workers some demand needs, by what a performance model says. Pure.

Fractions of workers: who adds two needs up, or compares, rounds up at the end.
"""

import math
from dataclasses import dataclass

from dynamo.planner.concurrency import positive, room
from dynamo.planner.config import WORKERS_MAX
from dynamo.planner.demand import Demand
from dynamo.planner.perf_model import PerfModel
from dynamo.planner.queueing import highest_utilisation, late_share

_LATE = 0.1  # share of the requests that may miss a target
_LATE_SIGMAS = 1.28  # the quantile of the normal distribution that belongs to it
_UTILISATION_MIN = 0.4  # where even this is too much, more workers hardly help: a prompt alone takes all the time
_ROUGHLY = 1.001  # models interpolate
_ROUNDING = 1e-6  # of a worker: sums of floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What a request may take, and how much of that the model does not know of."""

    ttft_s: float
    itl_s: float
    overhead_s: float = 0.0  # of the TTFT: network, handoff
    slowness: float = 1.0  # ITL as observed / as modelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """The result, and how it came about."""

    workers: float
    reason: str


NONE = Need(workers=0.0, reason="no traffic")


def whole(workers: float) -> int:
    """As many as have that much."""
    return math.ceil(workers - _ROUNDING)


def prefill_need(demand: Demand, model: PerfModel, targets: Targets) -> Need | None:
    """Workers of which no more than a tenth of the prompts wait longer than the TTFT allows.

    requests/s · tokens / (tokens/s of a worker · utilisation). None: too little is known.
    """
    if not demand.requests_per_s:
        return NONE
    tokens = demand.prefill_tokens
    if tokens is None:
        return None
    if not tokens:
        return Need(workers=0.0, reason="all prompts are cached")
    alone_s, tokens_per_s = positive(model.prefill_s(tokens)), positive(model.prefill_tokens_per_s(tokens))
    if alone_s is None or tokens_per_s is None:
        return None
    service_s = tokens / tokens_per_s
    busy = demand.requests_per_s * service_s
    wait_s = targets.ttft_s - targets.overhead_s - alone_s
    share = _utilisation(busy, service_s, wait_s)
    reason = (
        f"{demand.requests_per_s:.3g} req/s x {tokens:.0f} tokens / ({tokens_per_s:.4g} tokens/s x {share:.2f}) ="
        f" {busy / share:.2f}"
    )
    if wait_s <= 0:
        took = alone_s + targets.overhead_s
        reason += f", the TTFT of {targets.ttft_s:.3g} s is out of reach: a prompt alone takes {took:.3g} s"
    return Need(workers=min(busy / share, WORKERS_MAX), reason=reason)


def decode_need(demand: Demand, model: PerfModel, targets: Targets, interrupted_s: float = 0.0) -> Need | None:
    """Workers for so many requests at once (Little's law), and for what their number scatters by.

    requests/s · tokens · ITL / concurrency of a worker; `interrupted_s`: by each prompt, where the same workers compute
    them. None: too little is known.
    """
    if not demand.requests_per_s:
        return NONE
    each = room(demand, model, targets.itl_s / targets.slowness, interrupted_s)
    tokens = demand.output_tokens
    if each is None or tokens is None:
        return None
    itl_s = each.itl_s * targets.slowness
    note = "" if itl_s <= targets.itl_s * _ROUGHLY else f", the ITL of {targets.itl_s * 1000:.3g} ms is out of reach"
    at_once = demand.requests_per_s * tokens * itl_s
    workers = at_once_workers(at_once, each.requests)
    reason = (
        f"{demand.requests_per_s:.3g} req/s x {tokens:.0f} tokens x {itl_s * 1000:.3g} ms ="
        f" {at_once:.1f} at once (+{_LATE_SIGMAS * math.sqrt(at_once):.1f}) / {each.requests:.1f} = {workers:.2f}{note}"
    )
    return Need(workers=min(workers, WORKERS_MAX), reason=reason)


def at_once_workers(at_once: float, each: float) -> float:
    """Workers for a Poisson number of requests at once, of which a worker may have `each`: square-root staffing.

    Halfin and Whitt, Heavy-traffic limits for queues with many exponential servers, Operations Research 29, 1981.
    """
    return (at_once + _LATE_SIGMAS * math.sqrt(at_once)) / each


def _utilisation(busy: float, service_s: float, wait_s: float) -> float:
    """The highest with which waits are as short as they should be; `busy`: workers' worth of work."""
    if wait_s <= 0 or busy >= WORKERS_MAX:
        return _UTILISATION_MIN if wait_s <= 0 else 1.0
    few, many = 1, max(1, math.ceil(busy / _UTILISATION_MIN))
    while few < many:  # the fewest with which it works out
        middle = (few + many) // 2
        if late_share(busy / middle, middle, service_s, wait_s) <= _LATE:
            many = middle
        else:
            few = middle + 1
    return max(_UTILISATION_MIN, highest_utilisation(few, service_s, wait_s, _LATE))
