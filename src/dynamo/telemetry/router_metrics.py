"""dynamo_router_*: what a KV router knows, decides and gains.

Nothing is computed until somebody asks for the metrics, but a few additions for each request.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dynamo.telemetry.metrics import HistogramChild

_DECISION_BUCKETS_S = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 0.1)
_WAIT_BUCKETS_S = (0.001, 0.01, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PREFIX = "dynamo_router_"
_LABELS = ("model", "worker_type")


@dataclass(slots=True)
class RouterFigures:
    """The counts of one model's router since its start."""

    decisions: int = 0
    prompt_tokens: int = 0  # of prompts that were prefilled
    cached_tokens: int = 0  # of those, that needed no prefill, as the engines say
    overlap_tokens: int = 0  # that the router expected to be cached
    chosen_cost: float = 0.0  # in blocks, summed up
    mean_cost: float = 0.0
    queued: HistogramChild = field(default_factory=lambda: HistogramChild(_WAIT_BUCKETS_S))
    decision_seconds: HistogramChild = field(default_factory=lambda: HistogramChild(_DECISION_BUCKETS_S))

    def decided(self, *, overlap_tokens: int, cost: float, mean_cost: float, queued_s: float) -> None:
        self.decisions += 1
        self.overlap_tokens += overlap_tokens
        self.chosen_cost += cost
        self.mean_cost += mean_cost
        self.queued.observe(queued_s)

    def prefilled(self, prompt_tokens: int, cached_tokens: int | None) -> None:
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFigures:
    """What a worker is busy with at this moment, as the router sees it."""

    instance_id: int
    dp_rank: int
    prefill_tokens: int
    blocks: int
    foreign_requests: int  # that no router has told of, but the worker itself; included in the others, as are the next
    foreign_prefill_tokens: int
    foreign_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFigures:
    """What is known of the workers' caches at this moment, and how it came."""

    blocks: int
    believed_blocks: int
    pruned: int
    events: int
    malformed_events: int
    gaps: int
    recoveries: int
    dumps: int
    broadcast_feeds: int
    queued_requests: int


class RouterSource(Protocol):
    """A router that can be measured."""

    figures: RouterFigures

    def worker_figures(self) -> Iterable[WorkerFigures]: ...

    def index_figures(self) -> IndexFigures: ...


class RouterMetrics(Collector):
    """The routers of one process, by model and the type of the workers that they route to."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._sources: dict[tuple[str, str], RouterSource] = {}
        registry.register(self)

    def add(self, model: str, worker_type: str, source: RouterSource) -> None:
        """`worker_type`: of the workers that it routes to."""
        self._sources[model, worker_type] = source

    def remove(self, model: str, worker_type: str, source: RouterSource) -> None:
        """Passed over where another has taken its place."""
        if self._sources.get((model, worker_type)) is source:
            del self._sources[model, worker_type]

    def collect(self) -> Iterable[Metric]:
        yield from self._counts()
        yield from self._histograms()
        yield from self._index()
        yield from self._workers()

    def _counts(self) -> Iterable[Metric]:
        for name, documentation, attribute in (
            ("decisions_total", "Requests that were given a worker", "decisions"),
            ("prompt_tokens_total", "Prompt tokens of requests that have begun to be answered", "prompt_tokens"),
            ("cached_tokens_total", "Of those, tokens that needed no prefill, as engines report", "cached_tokens"),
            ("overlap_tokens_total", "Prompt tokens that were expected to be cached", "overlap_tokens"),
            ("chosen_cost_blocks_total", "Costs of the workers that were chosen", "chosen_cost"),
            ("mean_cost_blocks_total", "Mean costs of all workers that could have been", "mean_cost"),
        ):
            family = CounterMetricFamily(_PREFIX + name, documentation, labels=_LABELS)
            for key, source in self._sources.items():
                family.add_metric(key, getattr(source.figures, attribute))
            yield family
        ratio = GaugeMetricFamily(_PREFIX + "hit_ratio", "Cached tokens by prompt tokens", labels=_LABELS)
        for key, source in self._sources.items():
            figures = source.figures
            if figures.prompt_tokens:
                ratio.add_metric(key, figures.cached_tokens / figures.prompt_tokens)
        yield ratio

    def _histograms(self) -> Iterable[Metric]:
        for name, documentation, attribute in (
            ("decision_seconds", "Time that a decision takes", "decision_seconds"),
            ("queue_wait_seconds", "Time that requests wait for a worker", "queued"),
        ):
            family = HistogramMetricFamily(_PREFIX + name, documentation, labels=_LABELS)
            for key, source in self._sources.items():
                histogram: HistogramChild = getattr(source.figures, attribute)
                family.add_metric(key, histogram.buckets(), histogram.sum)
            yield family

    def _index(self) -> Iterable[Metric]:
        figures = {key: source.index_figures() for key, source in self._sources.items()}
        for kind, name, documentation, attribute in (
            (GaugeMetricFamily, "blocks", "Different KV blocks that are known from events", "blocks"),
            (GaugeMetricFamily, "believed_blocks", "Blocks that workers without events may have", "believed_blocks"),
            (GaugeMetricFamily, "broadcast_feeds", "Workers whose KV events a broker carries", "broadcast_feeds"),
            (GaugeMetricFamily, "queued_requests", "Requests that wait for a worker", "queued_requests"),
            (CounterMetricFamily, "pruned_blocks_total", "Blocks forgotten to bound memory", "pruned"),
            (CounterMetricFamily, "events_total", "KV events taken", "events"),
            (CounterMetricFamily, "malformed_events_total", "KV events dropped", "malformed_events"),
            (CounterMetricFamily, "event_gaps_total", "Times that KV events were missing", "gaps"),
            (CounterMetricFamily, "event_dumps_total", "Whole states of workers that were taken over", "dumps"),
            (CounterMetricFamily, "event_recoveries_total", "Times that a worker's feed was whole again", "recoveries"),
        ):
            family = kind(_PREFIX + name, documentation, labels=_LABELS)
            for key, each in figures.items():
                family.add_metric(key, getattr(each, attribute))
            yield family

    def _workers(self) -> Iterable[Metric]:
        figures = {key: list(source.worker_figures()) for key, source in self._sources.items()}
        for name, documentation, attribute in (
            ("prefill_tokens", "Tokens that wait for prefill", "prefill_tokens"),
            ("active_blocks", "KV blocks of running requests", "blocks"),
            ("foreign_requests", "Requests that no router has told of", "foreign_requests"),
            (
                "foreign_prefill_tokens",
                "Prompt tokens of those that wait for their first token",
                "foreign_prefill_tokens",
            ),
            ("foreign_blocks", "KV blocks in use that no router has told of", "foreign_blocks"),
        ):
            labels = (*_LABELS, "worker_id", "dp_rank")
            family = GaugeMetricFamily(f"{_PREFIX}worker_{name}", documentation, labels=labels)
            for key, workers in figures.items():
                for worker in workers:
                    values = (*key, str(worker.instance_id), str(worker.dp_rank))
                    family.add_metric(values, getattr(worker, attribute))
            yield family
