"""The fleets that benchmarks/planner.py compares."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from benchmarks.planner_config import PlannerBenchConfig
from benchmarks.planner_fleets import Outcome, Workers, simulate, timing
from benchmarks.planner_loads import Load
from benchmarks.planner_oracle import Need, Oracle
from dynamo.errors import ConfigError
from dynamo.planner.config import PlannerOptions
from dynamo.planner.interpolated import InterpolatedModel
from dynamo.planner.make import make_planner
from dynamo.planner.profile import Profile
from dynamo.simulator.elastic_run import Decides
from dynamo.simulator.exact_profile import exact_profile

GOAL = 0.99  # of the requests that an idle worker could answer in time
_STEP = 0.05  # of headrooms
_STRIDE = 4  # steps
_FIRST = 28  # steps, where the search begins
_MOST = 80  # steps: who is late with so many workers would be so with more
_START_TIMEOUTS = 3  # start-up times


class Policy(StrEnum):
    """Who decides how many workers there are."""

    STATIC_PEAK = "static-peak"  # the smallest constant fleet that reaches GOAL
    STATIC_MEAN = "static-mean"  # a constant one, with the same headroom over the mean of the load
    LOAD = "load"
    THROUGHPUT = "throughput"
    BOTH = "both"
    LEARNED = "both-learned"  # without a profile
    ORACLE = "oracle"  # it knows what will come: the smallest headroom that reaches GOAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What has come of one policy."""

    policy: Policy
    outcome: Outcome


class Comparison:
    """Runs the policies under one load, each when it is asked for, and those that others are measured by once."""

    def __init__(self, load: Load, config: PlannerBenchConfig) -> None:
        self._load = load
        self._config = config
        self._profile = exact_profile(config.engine(load.requests), timing(load))
        self._need = Need(load, self._profile, disaggregated=config.disaggregated)
        self._goal = GOAL * attainable(load, self._profile)
        self._peak_headroom, self._peak = self._least(self._static_outcomes())
        self._oracle_headroom, self._oracle = self._least(self._oracle_outcome)

    def run(self, policy: Policy) -> Compared:
        """Takes up to a minute for those that are not known yet."""
        match policy:
            case Policy.STATIC_PEAK:
                outcome = self._peak
            case Policy.ORACLE:
                outcome = self._oracle
            case Policy.STATIC_MEAN:
                outcome = simulate(self._load, self._config, self._need.mean(self._peak_headroom))
            case Policy.LEARNED:
                outcome = self._planned("both", None)
            case _:
                outcome = self._planned(policy.value, self._profile)
        return Compared(policy=policy, outcome=outcome)

    @property
    def description(self) -> str:
        """What was found for those that others are measured by."""
        return (
            f"To be reached: {self._goal:.1%} in time; headroom of static-peak {self._peak_headroom:.2f},"
            f" of the oracle {self._oracle_headroom:.2f}"
        )

    def _planned(self, mode: str, profile: Profile | None) -> Outcome:
        options = planner_options(self._load, self._config, mode)
        return self._elastic(make_planner(options, profile, converts=False))

    def _elastic(self, planner: Decides) -> Outcome:
        return simulate(self._load, self._config, self._at_first(self._oracle_headroom), planner)

    def _at_first(self, headroom: float) -> Workers:
        return self._need.between(0.0, self._load.start_up_s, headroom)

    def _static_outcomes(self) -> Callable[[float], Outcome]:
        known: dict[tuple[int, ...], Outcome] = {}  # several headrooms round up to the same workers

        def outcome(headroom: float) -> Outcome:
            workers = self._need.peak(headroom)
            key = tuple(workers.values())
            if key not in known:
                known[key] = simulate(self._load, self._config, workers)
            return known[key]

        return outcome

    def _oracle_outcome(self, headroom: float) -> Outcome:
        lead_s = self._load.start_up_s * (1 + self._config.start_up_jitter) + self._config.interval_s
        return simulate(self._load, self._config, self._at_first(headroom), Oracle(self._need, headroom, lead_s))

    def _least(self, outcome_of: Callable[[float], Outcome]) -> tuple[float, Outcome]:
        """The smallest headroom, in steps, with which the goal is reached; more of it is taken to reach it too.

        Raises ConfigError where none does.
        """
        outcomes: dict[int, Outcome] = {}

        def reaches(step: int) -> bool:
            outcomes[step] = outcome_of(step * _STEP)
            print(f"headroom {step * _STEP:.2f}: {outcomes[step].attainment:.1%} in time", file=sys.stderr, flush=True)
            return outcomes[step].attainment >= self._goal

        good = bad = _FIRST
        while not reaches(good):
            if good > _MOST:
                raise ConfigError(f"{good * _STEP:.0f} times the workers that are busy do not reach {self._goal:.1%}")
            bad, good = good, good + _STRIDE
        while bad >= good and good > 1:
            if reaches(bad := max(1, good - _STRIDE)):
                good = bad
        while good - bad > 1:
            middle = (good + bad) // 2
            if reaches(middle):
                good = middle
            else:
                bad = middle
        return good * _STEP, outcomes[good]


def attainable(load: Load, profile: Profile) -> float:
    """The share of the requests whose prompts an idle worker without them in its cache prefills within the target."""
    model = InterpolatedModel(profile)
    fit = sum(model.prefill_s(request.prompt_tokens) <= load.targets.ttft_s for request in load.requests)
    return fit / len(load.requests)


def planner_options(load: Load, config: PlannerBenchConfig, mode: str) -> PlannerOptions:
    """The planner's flags for a load."""
    return PlannerOptions(
        ttft_ms=1000 * load.targets.ttft_s,
        itl_ms=1000 * load.targets.tpot_s,
        max_prefill_workers=config.max_workers,
        max_decode_workers=config.max_workers,
        mode=mode,
        predictor=config.predictor,
        interval_s=config.interval_s,
        throughput_interval_s=config.throughput_interval_s,
        scale_down_delay_s=config.scale_down_delay_s,
        start_timeout_s=_START_TIMEOUTS * load.start_up_s,
    )
