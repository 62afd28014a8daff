"""Fleets that carry out a planner's actions: at once, late, or not at all."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dynamo.planner.decision import Action, Convert
from dynamo.planner.observation import Fleet
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import WorkerType


@dataclass(kw_only=True)
class SimulatedFleet:
    """One role's workers. Times are since they began to start, and until they will have drained."""

    desired: int
    ready: int
    starting: list[float] = field(default_factory=list)
    draining: list[float] = field(default_factory=list)

    @property
    def held(self) -> int:
        """Workers that have GPUs."""
        return self.ready + len(self.starting) + len(self.draining)


class SimulatedFleets:
    """`order_delay`: ticks until an order shows; None: never. Workers that start never get ready while `stuck`."""

    def __init__(
        self,
        sizes: Mapping[WorkerType, int],
        *,
        start_s: float = 0.0,
        drain_s: float = 0.0,
        order_delay: int | None = 0,
    ) -> None:
        self.roles = {role: SimulatedFleet(desired=size, ready=size) for role, size in sizes.items()}
        self.start_s, self.drain_s = start_s, drain_s
        self.order_delay = order_delay
        self.stuck = False
        self._orders: deque[tuple[int, Action]] = deque()
        self._tick = 0

    def apply(self, actions: Iterable[Action]) -> None:
        if self.order_delay is not None:
            self._orders.extend((self._tick + self.order_delay, action) for action in actions)
        self._carry_out_orders()

    def advance(self, seconds: float) -> None:
        """Time passes: workers get ready, others have drained."""
        self._tick += 1
        self._carry_out_orders()
        for fleet in self.roles.values():
            fleet.starting = [age_s + seconds for age_s in fleet.starting]
            if not self.stuck:
                fleet.ready += sum(age_s >= self.start_s for age_s in fleet.starting)
                fleet.starting = [age_s for age_s in fleet.starting if age_s < self.start_s]
            fleet.draining = [left_s - seconds for left_s in fleet.draining if left_s > seconds]
            self._settle(fleet)

    def observed(self, loads: Mapping[WorkerType, WorkerLoad] | None = None) -> dict[WorkerType, Fleet]:
        """`loads`: what each ready worker of a role says."""
        return {
            role: Fleet(
                desired=fleet.desired,
                ready=fleet.ready,
                starting_s=tuple(fleet.starting),
                draining=len(fleet.draining),
                loads={f"{role}{i}": loads[role] for i in range(fleet.ready)} if loads and role in loads else None,
            )
            for role, fleet in self.roles.items()
        }

    def set_desired(self, role: WorkerType, workers: int) -> None:
        fleet = self.roles[role]
        fleet.desired = workers
        self._settle(fleet)

    def _carry_out_orders(self) -> None:
        while self._orders and self._orders[0][0] <= self._tick:
            action = self._orders.popleft()[1]
            if not isinstance(action, Convert):
                self.set_desired(action.role, action.workers)
                continue
            source, destination = self.roles[action.source], self.roles[action.destination]
            source.desired -= action.workers
            destination.desired += action.workers
            source.ready -= action.workers
            destination.ready += action.workers

    def _settle(self, fleet: SimulatedFleet) -> None:
        """Starts those that lack, and ends those that are too many: the ones that start first."""
        while fleet.ready + len(fleet.starting) < fleet.desired:
            if self.start_s or self.stuck:
                fleet.starting.append(0.0)
            else:
                fleet.ready += 1
        while fleet.ready + len(fleet.starting) > fleet.desired:
            if fleet.starting:
                fleet.starting.pop()
                continue
            fleet.ready -= 1
            if self.drain_s:
                fleet.draining.append(self.drain_s)
