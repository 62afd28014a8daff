"""dynamo_component_kv_transfer_*: prompts that go from prefill to decode workers, as either end sees them."""

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dynamo.telemetry.metrics import HistogramChild

_PREFIX = "dynamo_component_kv_transfer_"
_BUCKETS_S = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)


class KvTransferMetrics(Collector):
    """Of all the engines in a process. Whoever does something adds to it."""

    def __init__(self, *, knows_held: bool = True) -> None:
        """Without `knows_held` nothing is said of the handoffs that are held: not every engine tells."""
        self._knows_held = knows_held
        self.ended: Counter[str] = Counter()  # received transfers, by their result
        self.tokens = 0
        self.size_bytes = 0
        self.duration = HistogramChild(_BUCKETS_S)  # of those that succeeded, from the question to the last byte
        self.held = 0  # handoffs, now
        self.expired = 0  # handoffs, that were held for as long as may be

    def collect(self) -> Iterable[Metric]:
        results = CounterMetricFamily(_PREFIX + "results", "Transfers of prompts to this worker", labels=("result",))
        for result, count in self.ended.items():
            results.add_metric((result,), count)
        yield results
        yield CounterMetricFamily(_PREFIX + "tokens", "Prompt tokens that came from prefill workers", value=self.tokens)
        yield CounterMetricFamily(_PREFIX + "bytes", "Bytes of KV cache that came so", value=self.size_bytes)
        duration = HistogramMetricFamily(_PREFIX + "seconds", "Duration of transfers that succeeded")
        duration.add_metric((), self.duration.buckets(), self.duration.sum)
        yield duration
        if self._knows_held:
            yield GaugeMetricFamily(
                _PREFIX + "held", "Prompts prefilled for others, and kept for them", value=self.held
            )
        yield CounterMetricFamily(
            _PREFIX + "expired", "Prompts that were freed because nobody fetched them in time", value=self.expired
        )
