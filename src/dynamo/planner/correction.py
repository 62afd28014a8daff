"""How far the performance model is from what is observed. Pure."""

from dynamo.planner.concurrency import prompt_s
from dynamo.planner.demand import Demand
from dynamo.planner.load_signals import FleetLoad
from dynamo.planner.perf_model import PerfModel
from dynamo.planner.queueing import mean_wait_s

_WEIGHT = 0.1  # of one observation
_SLOWNESS_MIN, _SLOWNESS_MAX = 0.5, 2.0
_OVERHEAD_MAX = 0.5  # share of the target
_UTILISATION_MAX = 0.8  # above it, waits are too long and too random to tell anything else


class Correction:
    """Learns from workers that are neither starting nor draining nor overloaded.

    The ITL by a factor: an engine that is slower is so at any concurrency. The TTFT by a sum: what the model does not
    know of, network and handoff, takes as long for a short prompt as for a long one.
    """

    def __init__(self, ttft_target_s: float) -> None:
        self._overhead_max_s = _OVERHEAD_MAX * ttft_target_s
        self.slowness = 1.0
        self.overhead_s = 0.0

    def observe_itl(
        self, itl_s: float, demand: Demand, load: FleetLoad, ready: int, model: PerfModel, *, prefills: bool = False
    ) -> None:
        """`ready` workers have had `load`, and the tokens of a request came every `itl_s`.

        Workers that prefill too have only the rest of their time for tokens.
        """
        at_once = load.running / ready
        busy_s = prompt_s(demand, model) if prefills else 0.0
        if demand.context_tokens is None or busy_s is None or at_once < 1 or itl_s <= 0:
            return
        expected_s = model.itl_s(demand.context_tokens, at_once)
        prefilling = demand.requests_per_s * busy_s / ready
        if expected_s and prefilling < _UTILISATION_MAX:
            found = min(max(itl_s * (1 - prefilling) / expected_s, _SLOWNESS_MIN), _SLOWNESS_MAX)
            self.slowness += _WEIGHT * (found - self.slowness)

    def observe_ttft(self, ttft_s: float, demand: Demand, ready: int, model: PerfModel) -> None:
        """`ready` workers have met `demand`, and the first token came after `ttft_s`."""
        tokens = demand.prefill_tokens
        if not tokens:
            return
        alone_s, tokens_per_s = model.prefill_s(tokens), model.prefill_tokens_per_s(tokens)
        if not alone_s or not tokens_per_s:
            return
        service_s = tokens / tokens_per_s
        utilisation = demand.requests_per_s * service_s / ready
        if utilisation < _UTILISATION_MAX:
            excess_s = ttft_s - alone_s - mean_wait_s(utilisation, ready, service_s)
            found_s = min(max(excess_s, 0.0), self._overhead_max_s)
            self.overhead_s += _WEIGHT * (found_s - self.overhead_s)
