"""dynamo_disagg_*: where prompts were prefilled, and how long a handoff took."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dynamo.telemetry.metrics import HistogramChild

_PREFILL_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(slots=True)
class DisaggFigures:
    """The counts of one model since its workers have been of two kinds."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)  # by place and reason
    prefill_seconds: HistogramChild = field(default_factory=lambda: HistogramChild(_PREFILL_BUCKETS_S))

    def decided(self, place: str, reason: str) -> None:
        """A request was, or is being, served in this way."""
        self.requests[place, reason] += 1

    def handed_on(self, prefill_s: float) -> None:
        """A prefill worker has been at it for so long until decode could begin."""
        self.prefill_seconds.observe(prefill_s)


class DisaggMetrics(Collector):
    """The figures of one process, by model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._figures: dict[str, DisaggFigures] = {}
        registry.register(self)

    def add(self, model: str, figures: DisaggFigures) -> None:
        self._figures[model] = figures

    def remove(self, model: str, figures: DisaggFigures) -> None:
        """Passed over where others have taken their place."""
        if self._figures.get(model) is figures:
            del self._figures[model]

    def collect(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            "dynamo_disagg_requests_total",
            "Requests by where their prompt was prefilled, and why",
            labels=("model", "prefill", "reason"),
        )
        seconds = HistogramMetricFamily(
            "dynamo_disagg_prefill_seconds", "Time at a prefill worker until decode could begin", labels=("model",)
        )
        for model, figures in self._figures.items():
            for (place, reason), count in figures.requests.items():
                requests.add_metric((model, place, reason), count)
            seconds.add_metric((model,), figures.prefill_seconds.buckets(), figures.prefill_seconds.sum)
        yield requests
        yield seconds
