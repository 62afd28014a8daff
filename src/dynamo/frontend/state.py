"""What the routes of one frontend share."""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from dynamo.errors import DynamoError
from dynamo.frontend.body_budget import BodyBudget
from dynamo.frontend.fleet_watcher import Fleets, UnwatchedFleets
from dynamo.frontend.key_ring import Anybody, Keys
from dynamo.frontend.overload_config import OverloadConfig
from dynamo.frontend.overload_guard import OverloadGuard
from dynamo.frontend.tracker import ModelMetrics
from dynamo.llm.model_manager import ModelManager
from dynamo.telemetry.metrics import FrontendMetrics

BODIES_BYTES_MAX = 2 << 30  # of all requests under way: 256 of 8 MB each, say


@dataclass(slots=True, kw_only=True)
class Frontend:
    """One frontend process."""

    models: ModelManager
    registry: CollectorRegistry
    metrics: FrontendMetrics
    body_limit_bytes: int
    bodies: BodyBudget = field(default_factory=lambda: BodyBudget(BODIES_BYTES_MAX))
    keys: Keys = field(default_factory=Anybody)
    request_timeout_s: float | None = None  # the longest that a request may take
    overload: OverloadConfig = field(default_factory=OverloadConfig)
    fleets: Fleets = field(default_factory=UnwatchedFleets)
    _series: dict[str, ModelMetrics] = field(default_factory=dict)
    _guards: dict[str, OverloadGuard] = field(default_factory=dict)

    def series(self, model: str) -> ModelMetrics:
        """The metrics of a model that is served; names of clients' invention must not come here."""
        found = self._series.get(model)
        if found is None:
            found = self._series[model] = ModelMetrics(self.metrics, model)
        return found

    def known_series(self) -> list[ModelMetrics]:
        """Those of each model that a request was ever for."""
        return list(self._series.values())

    def guard(self, model: str) -> OverloadGuard:
        """The door of a model that is served."""
        found = self._guards.get(model)
        if found is None:
            found = OverloadGuard(self.overload, self.metrics, model, lambda: self._fleet(model))
            self._guards[model] = found
        return found

    def let_in(self) -> None:
        """Something has changed for the requests that wait."""
        for guard in self._guards.values():
            guard.let_in()

    def _fleet(self, model: str) -> tuple[int, bool]:
        """How many workers the model has, and whether all are busy."""
        try:
            served = self.models.get(model)
        except DynamoError:  # the requests will get to know it by themselves
            return 0, False
        return len(served.instances()), self.fleets.is_busy(served)
