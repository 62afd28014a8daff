"""The throughput policy: as many workers as the forecast traffic needs, the floor under the load policy. Pure."""

from collections.abc import Callable, Iterable

from dynamo.planner.demand import Demand, IntervalSum
from dynamo.planner.forecast.base import Forecaster
from dynamo.planner.need import Need, Targets
from dynamo.planner.observation import Traffic
from dynamo.planner.perf_model import PerfModel
from dynamo.planner.role_need import role_need
from dynamo.protocols.model_card import WorkerType


class ThroughputPolicy:
    """Sums up the traffic of an interval, forecasts the next one, and says what each role needs for it."""

    def __init__(self, interval_s: float, model: PerfModel, make_forecaster: Callable[[], Forecaster]) -> None:
        self._interval_s = interval_s
        self._model = model
        self._rate, self._prefill, self._prompt, self._output = (make_forecaster() for _ in range(4))
        self._sum = IntervalSum()
        self._since_s: float | None = None
        self._known_prompt = self._known_output = False
        self.forecast: Demand | None = None  # the last
        self.needs: dict[WorkerType, Need | None] = {}  # of it; empty before the first

    def observe(self, now_s: float, traffic: Traffic, roles: Iterable[WorkerType], targets: Targets) -> None:
        """Takes one observation's traffic in; once in an interval the needs change."""
        self._sum.add(traffic)
        if self._since_s is None or now_s < self._since_s:
            self._since_s = now_s - traffic.duration_s if self._since_s is None else now_s
        if now_s - self._since_s < self._interval_s * (1 - 1e-9):
            return
        self._since_s = now_s
        seen = self._sum.take()
        if seen is not None:
            self.forecast = self._expected(seen)
            self.needs = {role: role_need(role, self.forecast, self._model, targets) for role in roles}

    def _expected(self, seen: Demand) -> Demand:
        self._rate.observe(seen.requests_per_s)
        if seen.requests_per_s and seen.prefill_tokens is not None and seen.prompt_tokens is not None:
            self._prefill.observe(seen.prefill_tokens)
            self._prompt.observe(seen.prompt_tokens)
            self._known_prompt = True
        if seen.requests_per_s and seen.output_tokens is not None:
            self._output.observe(seen.output_tokens)
            self._known_output = True
        return Demand.exactly(
            self._rate.forecast(),
            prefill_tokens=self._prefill.forecast() if self._known_prompt else None,
            prompt_tokens=self._prompt.forecast() if self._known_prompt else None,
            output_tokens=self._output.forecast() if self._known_output else None,
        )
