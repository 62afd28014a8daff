"""What the routes of one frontend share."""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from dynamo.frontend.key_ring import Anybody, Keys
from dynamo.frontend.tracker import ModelMetrics
from dynamo.llm.model_manager import ModelManager
from dynamo.telemetry.metrics import FrontendMetrics


@dataclass(slots=True, kw_only=True)
class Frontend:
    """One frontend process."""

    models: ModelManager
    registry: CollectorRegistry
    metrics: FrontendMetrics
    body_limit_bytes: int
    keys: Keys = field(default_factory=Anybody)
    request_timeout_s: float | None = None  # the longest that a request may take
    _series: dict[str, ModelMetrics] = field(default_factory=dict)

    def series(self, model: str) -> ModelMetrics:
        """The metrics of a model that is served; names of clients' invention must not come here."""
        found = self._series.get(model)
        if found is None:
            found = self._series[model] = ModelMetrics(self.metrics, model)
        return found
