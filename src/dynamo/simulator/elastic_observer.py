"""What a planner gets to know of a simulated cluster: what its frontends and its workers would tell."""

import dataclasses
from collections.abc import Mapping

import msgspec

from dynamo.planner.observation import Fleet, Observation, Traffic
from dynamo.planner.traffic_sums import as_traffic, difference
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import WorkerType
from dynamo.protocols.traffic import ModelTraffic
from dynamo.simulator.elastic_fleet import ElasticCluster


class Observer:
    """Makes an Observation of what has happened since the last one."""

    def __init__(self, cluster: ElasticCluster) -> None:
        self._cluster = cluster
        self._before_s = 0.0
        self._before = msgspec.structs.replace(cluster.journal.traffic)

    def observe(self, fleets: Mapping[WorkerType, Fleet], now_s: float) -> Observation:
        """`fleets`: as the connector says, without loads. Time must have passed since the last call."""
        after = msgspec.structs.replace(self._cluster.journal.traffic)
        traffic = traffic_between(self._before, after, now_s - self._before_s)
        self._before, self._before_s = after, now_s
        loaded = {role: dataclasses.replace(fleet, loads=self._loads(role)) for role, fleet in fleets.items()}
        return Observation(now_s=now_s, traffic=traffic, fleets=loaded)

    def _loads(self, role: WorkerType) -> dict[str, WorkerLoad]:
        """Of those that take requests: one that drains has left discovery."""
        pending = self._cluster.pending_tokens(role)
        return {
            str(worker.index): msgspec.structs.replace(
                worker.scheduler.load(), prefill_tokens=pending.get(worker.index, 0)
            )
            for worker in self._cluster.pools[role].workers
        }


def traffic_between(before: ModelTraffic, after: ModelTraffic, duration_s: float) -> Traffic:
    """What the frontend's counters say of the time between two looks at them."""
    added = difference(before, after)
    return as_traffic(added, requests=added.arrived_requests, duration_s=duration_s)
