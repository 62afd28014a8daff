"""What a process itself uses: memory, descriptors, CPU time and tasks. If it only ever grows, something leaks."""

import asyncio
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class ProcessMetrics(Collector):
    """process_* of prometheus_client, and the tasks of the event loop in which it is asked."""

    def __init__(self, registry: CollectorRegistry) -> None:
        ProcessCollector(registry=registry)
        registry.register(self)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        try:
            tasks = len(asyncio.all_tasks())
        except RuntimeError:  # asked outside of any event loop
            return
        yield GaugeMetricFamily("dynamo_event_loop_tasks", "Tasks that have not ended", value=tasks)
