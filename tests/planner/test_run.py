"""The loop around what decides."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry

from dynamo.errors import UnavailableError
from dynamo.planner.decision import Action, Decision, Scale
from dynamo.planner.decisions import Decisions
from dynamo.planner.observation import Observation
from dynamo.planner.run import PlannerLoop
from dynamo.protocols.model_card import WorkerType
from dynamo.telemetry.planner_metrics import PlannerMetrics
from dynamo.testing import eventually, within

from .scripted_connector import ScriptedConnector
from .test_decisions import SETTINGS, numbers

PREFILL, DECODE = WorkerType.Prefill, WorkerType.Decode
DOWN, UP = Scale(role=PREFILL, workers=1), Scale(role=DECODE, workers=3)


@dataclass(slots=True)
class ScriptedPlanner:
    """Decides the same each time; raises what it is told to."""

    actions: tuple[Action, ...] = ()
    held: str = ""
    fails: Exception | None = None
    observations: list[Observation] = field(default_factory=list)

    def tick(self, observation: Observation) -> Decision:
        self.observations.append(observation)
        if self.fails is not None:
            raise self.fails
        return Decision(
            number=len(self.observations),
            at_s=observation.now_s,
            held=self.held,
            problems=observation.problems,
            actions=self.actions,
        )


class ScriptedSource:
    """Nothing but the problems that it is told of, once `open` is set."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.looks = 0

    async def observe(self, problems: list[str]) -> Observation:
        self.looks += 1
        await self.open.wait()
        return Observation(now_s=float(self.looks), traffic=None, fleets={}, problems=tuple(problems))


class World:
    """A loop and all around it."""

    def __init__(self, *, interval_s: float = 0.01, timeout_s: float = 5.0, advisory: bool = False) -> None:
        self.planner = ScriptedPlanner()
        self.source = ScriptedSource()
        self.connector = ScriptedConnector()
        self.decisions = Decisions(SETTINGS)
        self.registry = CollectorRegistry()
        self.passed_s = 0.0  # by the loop's clock, beside what really passes
        self.loop = PlannerLoop(
            self.planner,
            self.source,
            self.connector,
            self.decisions,
            PlannerMetrics(self.registry),
            interval_s=interval_s,
            connector_timeout_s=timeout_s,
            advisory=advisory,
            clock=lambda: time.monotonic() + self.passed_s,
        )

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"dynamo_planner_{name}", labels) or 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.loop.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_decided_carried_out_and_told() -> None:
    world = World()
    world.planner.actions = (DOWN, UP)
    await world.loop.tick()
    assert world.connector.applied == [DOWN, UP]
    assert await numbers(world.decisions, 9) == [1]
    assert world.value("actions_total", role="prefill", action="scale") == 1
    assert world.value("decisions_total") == 1
    assert world.value("errors_total", stage="traffic") == 1, "there was none"
    assert world.value("errors_total", stage="workers") == 0


async def test_advisory_does_nothing() -> None:
    world = World(advisory=True)
    world.planner.actions = (DOWN, UP)
    await world.loop.tick()
    assert not world.connector.applied
    assert await numbers(world.decisions, 9) == [1]


async def test_after_a_failure_nothing_is_carried_out_and_it_is_said() -> None:
    """What comes first makes room for what comes later."""
    world = World()
    world.planner.actions = (DOWN, UP)
    world.connector.fails = UnavailableError("gone")
    await world.loop.tick()
    world.connector.fails = None
    await world.loop.tick()
    await world.loop.tick()
    assert world.connector.applied == [DOWN, UP] * 2
    problems = [observation.problems for observation in world.planner.observations]
    assert problems == [(), ("scale prefill to 1: gone",), ()]
    assert world.value("errors_total", stage="apply") == 1


async def test_a_silent_connector_is_not_waited_for() -> None:
    world = World(timeout_s=0.02)
    world.planner.actions = (UP,)
    world.connector.hangs = True
    await within(world.loop.tick())
    world.connector.hangs = False
    await within(world.loop.tick())
    assert world.planner.observations[1].problems == ("scale decode to 3: no answer within 0.02 s",)


async def test_after_a_defect_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.planner.fails = ZeroDivisionError("x")
    await world.loop.tick()
    assert "no decision could be made" in caplog.text
    world.planner.fails = None
    await world.loop.tick()
    assert world.planner.observations[1].problems == ("the last decision was ended by a defect: ZeroDivisionError: x",)
    assert world.value("errors_total", stage="decision") == 1


async def test_one_decision_in_each_interval() -> None:
    world = World()
    async with world.running():
        await eventually(lambda: len(world.planner.observations) >= 3)
    assert world.source.looks == len(world.planner.observations) + 1, "the first look is only to begin with"


async def test_decisions_do_not_pile_up() -> None:
    """While one takes long no other is made, and those that were due then are not made up for."""
    interval_s = 0.05
    world = World(interval_s=interval_s)
    async with world.running():
        await eventually(lambda: world.source.looks == 2)
        world.source.open.clear()
        await eventually(lambda: world.source.looks == 3)
        decided = len(world.planner.observations)
        world.passed_s = 6.5 * interval_s
        world.source.open.set()
        await eventually(lambda: len(world.planner.observations) >= decided + 2)
        late = world.planner.observations[decided + 1]
        assert len(late.problems) == 1
        assert "were left out" in late.problems[0]
        assert world.value("skipped_ticks_total") >= 6
        assert world.source.looks == len(world.planner.observations) + 1, "none is made up for"


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """How each line begins."""
    said = (r.getMessage() for r in caplog.records if r.levelno == level and r.name == "dynamo.planner.run")
    return [line.partition(" |")[0] for line in said]


@pytest.mark.parametrize(
    ("change", "news"),
    [
        (lambda _: None, False),
        (lambda planner: setattr(planner, "actions", (UP,)), True),
        (lambda planner: setattr(planner, "held", "nothing is known"), True),
    ],
)
async def test_a_line_for_what_is_new(
    caplog: pytest.LogCaptureFixture, change: Callable[[ScriptedPlanner], None], news: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    world = World()
    await world.loop.tick()
    caplog.clear()
    change(world.planner)
    await world.loop.tick()
    assert lines(caplog, logging.INFO if news else logging.DEBUG) == ["decision 2"]
    caplog.clear()
    world.planner.actions = ()
    await world.loop.tick()
    assert lines(caplog, logging.DEBUG) == ["decision 3"], "nothing has changed since"
