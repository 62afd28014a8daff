"""Asks workers for their load, where limits depend on it."""

import time
from collections.abc import Callable
from typing import Protocol

from dynamo.frontend.fleet import Report, all_busy, endpoint_of
from dynamo.frontend.overload_config import OverloadConfig
from dynamo.llm.served_model import ServedModel
from dynamo.protocols.load import LOAD_ENDPOINT, WorkerLoad
from dynamo.router.load_watcher import INTERVAL_S, LoadWatcher
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.instance import EndpointId


class Fleets(Protocol):
    """Knows whether workers are busy."""

    def is_busy(self, model: ServedModel) -> bool:
        """Whether a request to the model would come to busy workers only."""
        ...

    async def aclose(self) -> None: ...


class UnwatchedFleets:
    """Where nobody wants to know."""

    def is_busy(self, model: ServedModel) -> bool:
        return False

    async def aclose(self) -> None:
        """There is nothing to end."""


class WatchedFleets:
    """Follows the endpoints of the models that it was asked about."""

    def __init__(
        self,
        runtime: DistributedRuntime,
        config: OverloadConfig,
        on_report: Callable[[], None],
        interval_s: float = INTERVAL_S,
    ) -> None:
        """`on_report` is called when a worker has told of its load; all are asked `interval_s` after `interval_s`."""
        self._runtime = runtime
        self._config = config
        self._on_report = on_report
        self._interval_s = interval_s
        self._watchers: dict[EndpointId, LoadWatcher] = {}
        self._reports: dict[int, Report] = {}

    def is_busy(self, model: ServedModel) -> bool:
        instances = model.instances()
        for endpoint in {endpoint_of(instance) for instance in instances} - self._watchers.keys():
            client = self._runtime.client(endpoint.beside(LOAD_ENDPOINT), list[WorkerLoad])
            self._watchers[endpoint] = LoadWatcher(
                client,
                lambda _: True,
                lambda _: self._forget_old(),
                self._on_load,
                self._on_load,
                self._interval_s,
                event_plane=self._runtime.event_plane,
            )
        return all_busy(instances, self._reports, self._config, time.monotonic())

    async def aclose(self) -> None:
        for watcher in self._watchers.values():
            await watcher.close()

    def _on_load(self, instance_id: int, ranks: list[WorkerLoad]) -> None:
        self._reports[instance_id] = Report(ranks=ranks, at_s=time.monotonic())
        self._on_report()

    def _forget_old(self) -> None:
        """Workers come and go."""
        now_s = time.monotonic()
        self._reports = {i: report for i, report in self._reports.items() if not report.is_old(now_s)}
