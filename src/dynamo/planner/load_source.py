"""How busy the workers say they are."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dynamo.planner.workers import Workers
from dynamo.protocols.load import LOAD_ENDPOINT, WorkerLoad
from dynamo.protocols.model_card import WorkerType
from dynamo.router.load_watcher import INTERVAL_S, LoadWatcher
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.instance import EndpointId

_STALE_INTERVALS = 3  # without a word: then what a worker has said is too old


@dataclass(frozen=True, slots=True, kw_only=True)
class _Report:
    """What a worker said, all of its ranks, and when."""

    ranks: Sequence[WorkerLoad]
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """At one moment."""

    by_role: Mapping[WorkerType, Mapping[str, WorkerLoad]]  # by "instance/rank"; of those that have told lately
    problems: Sequence[str]


class LoadSource:
    """Has the workers' loads ready: they are asked all the time, so that a slow one holds up nobody."""

    def __init__(self, runtime: DistributedRuntime, workers: Workers, interval_s: float = INTERVAL_S) -> None:
        self._runtime = runtime
        self._workers = workers
        self._interval_s = min(interval_s, INTERVAL_S)
        self._watchers: dict[EndpointId, LoadWatcher] = {}
        self._reports: dict[int, _Report] = {}
        self._known_since_s: dict[int, float] = {}  # workers

    def loads(self) -> Loads:
        """What the workers that are there now have said lately. One that has just come need not have said anything."""
        now_s = time.monotonic()
        stale_s = now_s - _STALE_INTERVALS * self._interval_s
        by_role = self._workers.by_role()
        self._follow(by_role, now_s)
        problems: list[str] = []
        found: dict[WorkerType, dict[str, WorkerLoad]] = {}
        for role, workers in by_role.items():
            fresh = {i: self._reports[i] for i in workers if i in self._reports and self._reports[i].at_s >= stale_s}
            found[role] = {f"{i:x}/{rank.dp_rank}": rank for i, report in fresh.items() for rank in report.ranks}
            silent = [i for i in workers if i not in fresh and self._known_since_s[i] < stale_s]
            if silent:
                names = ", ".join(f"{i:x}" for i in sorted(silent)[:3]) + (", ..." if len(silent) > 3 else "")
                problems.append(f"{len(silent)} of {len(workers)} {role.value} workers do not say their load: {names}")
        return Loads(by_role=found, problems=problems)

    async def close(self) -> None:
        for watcher in self._watchers.values():
            await watcher.close()

    def _follow(self, by_role: Mapping[WorkerType, Mapping[int, EndpointId]], now_s: float) -> None:
        live = {i: endpoint for workers in by_role.values() for i, endpoint in workers.items()}
        self._known_since_s = {i: self._known_since_s.get(i, now_s) for i in live}
        self._reports = {i: report for i, report in self._reports.items() if i in live}
        for endpoint in set(live.values()) - self._watchers.keys():
            client = self._runtime.client(endpoint.beside(LOAD_ENDPOINT), list[WorkerLoad])
            self._watchers[endpoint] = LoadWatcher(
                client,
                lambda instance_id: instance_id in self._known_since_s,
                lambda _: None,
                self._on_load,
                self._on_load,
                self._interval_s,
                event_plane=self._runtime.event_plane,
            )

    def _on_load(self, instance_id: int, ranks: list[WorkerLoad]) -> None:
        self._reports[instance_id] = _Report(ranks=ranks, at_s=time.monotonic())
