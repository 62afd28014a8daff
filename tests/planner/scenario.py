"""Scenario files: what a planner observes step by step, and what is expected of it.

A file has a planner's options, a model's figures, fleets that carry out what the planner asks for, and steps. A step is
a number of ticks with the same traffic, what happens to the fleets before it, and what must be true in it.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from dynamo.planner.config import PlannerOptions
from dynamo.planner.decision import Decision
from dynamo.planner.explanation import explain
from dynamo.planner.forecast.constant import ConstantForecaster
from dynamo.planner.observation import Observation, Traffic
from dynamo.planner.state_machine import Planner
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import WorkerType

from .scripted_model import ScriptedModel, UnknownModel
from .simulated_fleets import SimulatedFleets

Workers = dict[WorkerType, int]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A misspelt key is an error."""


class Requests(_Strict, frozen=True, kw_only=True):
    """Traffic at a steady pace."""

    requests_per_s: float = 0.0
    prompt_tokens: float | None = None
    cached_tokens: float | None = None
    output_tokens: float | None = None
    ttft_s: float | None = None
    itl_s: float | None = None

    def traffic(self, interval_s: float) -> Traffic:
        return Traffic(
            duration_s=interval_s,
            requests=self.requests_per_s * interval_s,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            output_tokens=self.output_tokens,
            ttft_s=self.ttft_s,
            itl_s=self.itl_s,
        )


class Happens(_Strict, frozen=True, kw_only=True):
    """To the fleets, before a step."""

    set_by_hand: Workers = {}  # somebody changes the desired number
    lost: Workers = {}  # so many ready workers end, and nobody starts others until they are asked for again
    never_ready: bool | None = None  # what starts from now on does not get ready; false: all that start will
    connector: str = "works"  # "silent": it does not answer; "fails": it answers, but refuses all orders


class Expected(_Strict, frozen=True, kw_only=True):
    """Of a step. Numbers of workers are those that the connector was told to have."""

    at_end: Workers = {}
    reaches: Workers = {}  # within `within_ticks` of the step's start, and stays there
    within_ticks: int = 1
    never_above: Workers = {}
    never_below: Workers = {}
    no_actions: bool = False
    held: str | None = None  # in the reason of each tick that has a fault; "": no tick is held
    problem: str | None = None  # in the problems of the last tick; "": there are none
    line: str | None = None  # in the log line of a tick


class Step(_Strict, frozen=True, kw_only=True):
    about: str
    ticks: int
    requests: list[Requests | None] = []  # in turn, from tick to tick; null: no figures. None given: as before
    loads: dict[WorkerType, WorkerLoad] | None = None  # that each ready worker tells
    happens: Happens = Happens()
    expected: Expected = Expected()


class Options(_Strict, frozen=True, kw_only=True):
    """Those of PlannerOptions that scenarios set."""

    mode: str = "both"
    ttft_ms: float = 500.0
    itl_ms: float = 50.0
    min_prefill_workers: int = 1
    max_prefill_workers: int = 64
    min_decode_workers: int = 1
    max_decode_workers: int = 64
    gpu_budget: int | None = None
    prefill_gpus: int = 1
    decode_gpus: int = 1
    interval_s: float = 5.0
    throughput_interval_s: float = 60.0
    scale_down_delay_s: float = 30.0
    start_timeout_s: float = 60.0
    convert_roles: bool = False


class Figures(_Strict, frozen=True, kw_only=True):
    """Of a ScriptedModel."""

    tokens_per_s: float = 10_000.0
    step_s: float = 0.01
    request_s: float = 0.001


class Scenario(_Strict, frozen=True, kw_only=True):
    about: str
    options: Options = Options()
    model: Figures | None = Figures()  # null: nothing is known of the workers
    fleets: Workers
    start_s: float = 0.0
    drain_s: float = 0.0
    steps: list[Step]

    @classmethod
    def read(cls, path: Path) -> "Scenario":
        return msgspec.json.decode(path.read_bytes(), type=cls)


class Play:
    """One scenario under way. Raises AssertionError where something is not as expected."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._interval_s = scenario.options.interval_s
        model = UnknownModel() if scenario.model is None else ScriptedModel(**msgspec.structs.asdict(scenario.model))
        options = PlannerOptions(**msgspec.structs.asdict(scenario.options))
        self._planner = Planner(options, model, ConstantForecaster, converts=options.convert_roles)
        self._fleets = SimulatedFleets(scenario.fleets, start_s=scenario.start_s, drain_s=scenario.drain_s)
        self._requests: list[Requests | None] = [None]
        self._now_s = 0.0

    def run(self) -> None:
        for step in self._scenario.steps:
            self._requests = step.requests or self._requests
            self._let_happen(step.happens)
            decisions: list[Decision] = []
            numbers: list[Workers] = []
            for decision in self._ticks(step):
                decisions.append(decision)
                numbers.append({role: fleet.desired for role, fleet in self._fleets.roles.items()})
            try:
                _check(step.expected, decisions, numbers)
            except AssertionError as error:
                log = "\n".join(map(explain, decisions))
                raise AssertionError(f"{step.about}: {error}\n{log}") from None

    def _let_happen(self, happens: Happens) -> None:
        for role, workers in happens.set_by_hand.items():
            self._fleets.set_desired(role, workers)
        for role, workers in happens.lost.items():
            self._fleets.roles[role].ready -= workers
        if happens.never_ready is not None:
            self._fleets.stuck = happens.never_ready

    def _ticks(self, step: Step) -> Iterator[Decision]:
        connector = step.happens.connector
        for tick in range(step.ticks):
            self._now_s += self._interval_s
            requests = self._requests[tick % len(self._requests)]
            decision = self._planner.tick(
                Observation(
                    now_s=self._now_s,
                    traffic=None if requests is None else requests.traffic(self._interval_s),
                    fleets=None if connector == "silent" else self._fleets.observed(step.loads),
                )
            )
            if connector == "works":
                self._fleets.apply(decision.actions)
            yield decision
            self._fleets.advance(self._interval_s)


def _check(expected: Expected, decisions: list[Decision], numbers: list[Workers]) -> None:
    for role, workers in expected.at_end.items():
        assert numbers[-1][role] == workers, f"{role} ends at {numbers[-1][role]}, not {workers}"
    for role, workers in expected.reaches.items():
        series = [each[role] for each in numbers[expected.within_ticks - 1 :]]
        assert set(series) == {workers}, f"{role} is {series} from tick {expected.within_ticks} on, not {workers}"
    for role, workers in expected.never_above.items():
        assert max(each[role] for each in numbers) <= workers, f"{role} goes above {workers}"
    for role, workers in expected.never_below.items():
        assert min(each[role] for each in numbers) >= workers, f"{role} goes below {workers}"
    if expected.no_actions:
        assert not any(decision.actions for decision in decisions), "there are actions"
    _check_words(expected, decisions)


def _check_words(expected: Expected, decisions: list[Decision]) -> None:
    if expected.held is not None:
        held = [decision.held for decision in decisions if decision.held]
        assert bool(held) == bool(expected.held), f"held: {held}"
        assert all(expected.held in reason for reason in held), f"held: {held}"
    if expected.problem is not None:
        problems = " ".join(decisions[-1].problems)
        assert bool(problems) == bool(expected.problem), f"problems: {problems!r}"
        assert expected.problem in problems, f"problems: {problems!r}"
    if expected.line is not None:
        assert any(expected.line in explain(decision) for decision in decisions), f"nowhere: {expected.line}"
