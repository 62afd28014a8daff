"""A planner at work on a simulated cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from dynamo.planner.decision import Decision
from dynamo.planner.observation import Observation
from dynamo.protocols.model_card import WorkerType
from dynamo.simulator.elastic_connector import SimulatedConnector
from dynamo.simulator.elastic_fleet import ElasticCluster, ElasticFleet
from dynamo.simulator.elastic_observer import Observer
from dynamo.simulator.record import RequestRecord, RunRecord
from dynamo.simulator.trace import TraceRequest

PATIENCE_S = 3600.0  # after the end of the load: who has no answer by then is not going to get one


class Decides(Protocol):
    """The planner's core, or what stands in for it."""

    def tick(self, observation: Observation) -> Decision: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticRecord:
    """All of one run."""

    requests: Sequence[RequestRecord]  # those that got no answer are not finished
    end_s: float  # of the load, or of the last answer if that came later
    gpu_s: float  # until then, of all roles
    spans_s: Mapping[WorkerType, Sequence[tuple[float, float]]]  # from when to when each worker held its GPUs
    decisions: Sequence[Decision]

    @property
    def actions(self) -> int:
        return sum(len(decision.actions) for decision in self.decisions)


class ElasticRun:
    """Has the planner tick while requests arrive. Good for one run."""

    def __init__(
        self,
        cluster: ElasticCluster,
        fleets: Mapping[WorkerType, ElasticFleet],
        planner: Decides | None = None,
        *,
        interval_s: float = 5.0,
        duration_s: float,
    ) -> None:
        """Without `planner` nothing changes. `interval_s`: between its ticks. `duration_s`: of the load."""
        self._cluster = cluster
        self._fleets = fleets
        self._planner = planner
        self._interval_s = interval_s
        self._duration_s = duration_s
        self._connector = SimulatedConnector(fleets)
        self._observer = Observer(cluster)
        self._decisions: list[Decision] = []

    def run(self, requests: Sequence[TraceRequest], times_s: Sequence[float]) -> ElasticRecord:
        """Lets the requests arrive at `times_s`, which ascend, none later than `duration_s`."""
        if self._planner is not None:
            self._cluster.loop.at(self._interval_s, self._tick)
        record = self._cluster.run(requests, times_s)
        end_s = max(self._duration_s, _last_token_s(record))
        return ElasticRecord(
            requests=record.requests,
            end_s=end_s,
            gpu_s=sum(fleet.gpu_s(end_s) for fleet in self._fleets.values()),
            spans_s={role: fleet.spans_s(end_s) for role, fleet in self._fleets.items()},
            decisions=self._decisions,
        )

    def _tick(self, now_s: float) -> None:
        assert self._planner is not None
        decision = self._planner.tick(self._observer.observe(self._connector.fleets(now_s), now_s))
        self._decisions.append(decision)
        for action in decision.actions:
            self._connector.apply(action, now_s)
        waits = self._cluster.journal.unfinished and now_s < self._duration_s + PATIENCE_S
        if now_s < self._duration_s or waits:
            self._cluster.loop.at(now_s + self._interval_s, self._tick)


def _last_token_s(record: RunRecord) -> float:
    return max((request.last_token_s for request in record.requests), default=0.0)
