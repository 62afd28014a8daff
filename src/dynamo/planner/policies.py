"""Both policies, and what they know in common. Pure."""

from collections.abc import Callable, Sequence

from dynamo.planner.config import PlannerOptions
from dynamo.planner.correction import Correction
from dynamo.planner.demand import Demand, TrafficWindow
from dynamo.planner.forecast.base import Forecaster
from dynamo.planner.load_scaling import LoadPolicy
from dynamo.planner.load_signals import fleet_load
from dynamo.planner.need import Targets, whole
from dynamo.planner.observation import Traffic
from dynamo.planner.perf_model import PerfModel
from dynamo.planner.plan import RolePlan
from dynamo.planner.situation import Situation
from dynamo.planner.throughput_scaling import ThroughputPolicy
from dynamo.protocols.model_card import WorkerType


class Policies:
    """Says what each role should have, as `--mode` has it."""

    def __init__(self, options: PlannerOptions, model: PerfModel, make_forecaster: Callable[[], Forecaster]) -> None:
        self._ttft_s, self._itl_s = options.ttft_ms / 1000, options.itl_ms / 1000
        self._mode = options.mode
        self._model = model
        self._window = TrafficWindow()
        self._correction = Correction(self._ttft_s)
        self._throughput = ThroughputPolicy(options.throughput_interval_s, model, make_forecaster)
        self._load = LoadPolicy(model, max(options.scale_down_delay_s, options.interval_s))

    @property
    def forecast(self) -> Demand | None:
        """None: there was none yet, or it does not matter."""
        return None if self._mode == "load" else self._throughput.forecast

    def propose(self, plans: Sequence[RolePlan], traffic: Traffic, now_s: float) -> None:
        """Fills in `throughput` and `load`."""
        self._window.add(now_s, traffic)
        demand = self._window.demand()
        for plan in plans:
            self._correct(plan, demand, traffic)
        targets = Targets(
            ttft_s=self._ttft_s,
            itl_s=self._itl_s,
            overhead_s=self._correction.overhead_s,
            slowness=self._correction.slowness,
        )
        if self._mode != "load":
            self._throughput.observe(now_s, traffic, [plan.role for plan in plans], targets)
            for plan in plans:
                self._set_floor(plan)
        if self._mode != "throughput":
            for plan in plans:
                self._ask_load_policy(plan, demand, traffic, targets, now_s)

    def _correct(self, plan: RolePlan, demand: Demand, traffic: Traffic) -> None:
        load, ready = fleet_load(plan.fleet), plan.fleet.ready
        if not ready or not plan.standing.settled or (load is not None and load.waiting):
            return
        if plan.role is not WorkerType.Decode and traffic.ttft_s is not None:
            self._correction.observe_ttft(traffic.ttft_s, demand, ready, self._model)
        if plan.role is not WorkerType.Prefill and traffic.itl_s is not None and load is not None:
            shares = plan.role is WorkerType.Aggregated
            self._correction.observe_itl(traffic.itl_s, demand, load, ready, self._model, prefills=shares)

    def _set_floor(self, plan: RolePlan) -> None:
        needs = self._throughput.needs
        if plan.role not in needs:
            return
        need = needs[plan.role]
        if need is None:
            plan.reasons.append("throughput: too little is known")
            return
        plan.throughput = plan.bounds.clamp(whole(need.workers))
        plan.reasons.append(f"throughput {plan.throughput}: {need.reason}")

    def _ask_load_policy(
        self, plan: RolePlan, demand: Demand, traffic: Traffic, targets: Targets, now_s: float
    ) -> None:
        situation = Situation(
            role=plan.role,
            counted=plan.counted,
            ready=plan.fleet.ready,
            coming=plan.coming,
            demand=demand,
            traffic=traffic,
            load=fleet_load(plan.fleet),
        )
        proposal = self._load.propose(situation, targets, now_s)
        plan.load = plan.bounds.clamp(proposal.workers)
        plan.reasons.append(f"load {proposal.workers}: {proposal.reason}")
