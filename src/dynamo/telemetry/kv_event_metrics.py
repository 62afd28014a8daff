"""dynamo_worker_kv_events_*: what becomes of an engine's KV events before any router hears of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

_PREFIX = "dynamo_worker_kv_events_"


@dataclass(frozen=True, slots=True, kw_only=True)
class KvEventFigures:
    """The counts of one data-parallel rank since its start."""

    messages: int  # taken, each with any number of events
    replays: int  # that the engine was asked for
    gaps: int  # that no replay could fill: routers were told to forget all that the rank holds
    malformed: int  # messages and events that could not be read
    unnamed_blocks: int  # that routers were not told of


class KvEventMetrics(Collector):
    """The events of one engine. Nothing is computed until somebody asks for the metrics."""

    def __init__(self, figures: Callable[[], Mapping[int, KvEventFigures]]) -> None:
        """`figures` gives the counts of this moment by data-parallel rank."""
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        figures = self._figures()
        for name, documentation, attribute in (
            ("messages_total", "Messages with KV events that the engine published", "messages"),
            ("replays_total", "Times that the engine was asked to repeat KV events", "replays"),
            ("gaps_total", "Times that KV events were lost for good", "gaps"),
            ("malformed_total", "KV events, and messages, that could not be read", "malformed"),
            ("unnamed_blocks_total", "Stored KV blocks that routers cannot be told of", "unnamed_blocks"),
        ):
            family = CounterMetricFamily(_PREFIX + name, documentation, labels=("dp_rank",))
            for dp_rank, rank in figures.items():
                family.add_metric((str(dp_rank),), getattr(rank, attribute))
            yield family
