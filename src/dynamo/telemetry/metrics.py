"""Every metric of the framework, under upstream's names.

Histograms are our own collector: observing costs a bisection, a tenth of what prometheus_client's takes, and the
frontend observes one value for each token.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_ITL_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_TOKEN_BUCKETS = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


class HistogramChild:
    """One series of a Histogram."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds with cumulative counts, as the text format has them."""
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        return list(zip(bounds, accumulate(self.counts), strict=True))


class Histogram(Collector):
    """A histogram with labels, for one thread."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = tuple(labels)
        self._bounds = tuple(bounds)
        self._children: dict[tuple[str, ...], HistogramChild] = {}
        registry.register(self)

    def labels(self, *values: str) -> HistogramChild:
        """The series of these label values; keep it where it is used often."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = HistogramChild(self._bounds)
        return child

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, child in self._children.items():
            family.add_metric(values, child.buckets(), child.sum)
        yield family


class TallyChild:
    """One series of a Tally."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self, count: int) -> None:
        self.value += count


class Tally(Collector):
    """A counter that is added to for each token, for one thread."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = tuple(labels)
        self._children: dict[tuple[str, ...], TallyChild] = {}
        registry.register(self)

    def labels(self, *values: str) -> TallyChild:
        return self._children.setdefault(values, TallyChild())

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, child in self._children.items():
            family.add_metric(values, child.value)
        yield family


class FrontendMetrics:
    """dynamo_frontend_*"""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "dynamo_frontend_"
        self.requests = Counter(
            f"{prefix}requests_total",
            "Requests answered",
            ("model", "endpoint", "request_type", "status", "error_type"),
            registry=registry,
        )
        self.refused = Counter(
            f"{prefix}refused_requests_total", "Requests that no worker has seen", ("reason",), registry=registry
        )
        self.inflight = Gauge(f"{prefix}inflight_requests", "Requests being answered", ("model",), registry=registry)
        self.queued = Gauge(
            f"{prefix}queued_requests", "Requests that wait for their first token", ("model",), registry=registry
        )
        self.admission_queue = Gauge(
            f"{prefix}admission_queue_requests", "Requests that wait to be let in", ("model",), registry=registry
        )
        self.disconnected = Counter(
            f"{prefix}disconnected_clients_total", "Clients that left before the end", registry=registry
        )
        self.output_tokens = Tally(f"{prefix}output_tokens_total", "Tokens generated", ("model",), registry)
        self.ready = Gauge(f"{prefix}model_ready", "1 while a worker serves the model", ("model",), registry=registry)
        self.time_to_first_token = Histogram(
            f"{prefix}time_to_first_token_seconds", "TTFT", ("model",), _LATENCY_BUCKETS_S, registry
        )
        self.inter_token_latency = Histogram(
            f"{prefix}inter_token_latency_seconds", "ITL", ("model",), _ITL_BUCKETS_S, registry
        )
        self.duration = Histogram(
            f"{prefix}request_duration_seconds", "From the request to its end", ("model",), _LATENCY_BUCKETS_S, registry
        )
        self.input_tokens = Histogram(
            f"{prefix}input_sequence_tokens", "Prompt tokens per request", ("model",), _TOKEN_BUCKETS, registry
        )
        self.output_sequence = Histogram(
            f"{prefix}output_sequence_tokens", "Generated tokens per request", ("model",), _TOKEN_BUCKETS, registry
        )
        self.cached_tokens = Histogram(
            f"{prefix}cached_tokens", "Prompt tokens that needed no prefill", ("model",), (0, *_TOKEN_BUCKETS), registry
        )


class EndpointMetrics:
    """The series of one endpoint; a request costs a few additions."""

    __slots__ = ("duration", "errors", "inflight", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.inflight = 0
        self.errors: dict[str, int] = {}  # by error type
        self.duration = HistogramChild(_LATENCY_BUCKETS_S)

    def started(self) -> None:
        self.requests += 1
        self.inflight += 1

    def ended(self, duration_s: float, error_type: str | None) -> None:
        self.inflight -= 1
        self.duration.observe(duration_s)
        if error_type is not None:
            self.errors[error_type] = self.errors.get(error_type, 0) + 1


class ComponentMetrics(Collector):
    """dynamo_component_*: the endpoints that a process serves."""

    LABELS = ("dynamo_namespace", "dynamo_component", "dynamo_endpoint")

    def __init__(self, registry: CollectorRegistry) -> None:
        self._endpoints: dict[tuple[str, str, str], EndpointMetrics] = {}
        registry.register(self)

    def endpoint(self, namespace: str, component: str, name: str) -> EndpointMetrics:
        """The series with these labels."""
        return self._endpoints.setdefault((namespace, component, name), EndpointMetrics())

    def collect(self) -> Iterable[Metric]:
        prefix = "dynamo_component_"
        requests = CounterMetricFamily(f"{prefix}requests_total", "Requests taken", labels=self.LABELS)
        errors = CounterMetricFamily(
            f"{prefix}errors_total", "Requests that failed", labels=(*self.LABELS, "error_type")
        )
        inflight = GaugeMetricFamily(f"{prefix}inflight_requests", "Requests being answered", labels=self.LABELS)
        duration = HistogramMetricFamily(
            f"{prefix}request_duration_seconds", "From the request to its end", labels=self.LABELS
        )
        for labels, endpoint in self._endpoints.items():
            requests.add_metric(labels, endpoint.requests)
            inflight.add_metric(labels, endpoint.inflight)
            duration.add_metric(labels, endpoint.duration.buckets(), endpoint.duration.sum)
            for error_type, count in endpoint.errors.items():
                errors.add_metric((*labels, error_type), count)
        return requests, errors, inflight, duration
