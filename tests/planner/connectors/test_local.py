"""Asking the supervisor of this host."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from dynamo.errors import DynamoError, InternalError, InvalidRequestError, UnavailableError
from dynamo.planner.connectors.local import LocalConnector
from dynamo.planner.decision import Action, Convert, Scale
from dynamo.planner.decisions import Decisions, PlannerSettings
from dynamo.planner.observation import Fleet
from dynamo.planner.supervision import SupervisedFleet, SupervisedFleets
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.testing import eventually, within

A, P, D = WorkerType.Aggregated, WorkerType.Prefill, WorkerType.Decode


SETTINGS = PlannerSettings(
    connector="local", mode="both", predictor="constant", advisory=False, ttft_ms=500, itl_ms=50, interval_s=5
)


class Supervisor:
    """Says what a test has it say, and remembers what it was told."""

    def __init__(self) -> None:
        self.answer = SupervisedFleets(fleets=(SupervisedFleet(role=A, desired=1, ready=1),))
        self.refusal: DynamoError | None = None
        self.silent = False  # answers, but with nothing
        self.actions: list[Action] = []

    async def start(self, runtime: DistributedRuntime) -> None:
        await runtime.endpoint("ns.supervisor.fleets").start(self._fleets)
        await runtime.endpoint("ns.supervisor.scale").start(self._scale, request_type=Action)

    async def _fleets(self, request: Any) -> AsyncIterator[SupervisedFleets]:
        if self.refusal is not None:
            raise self.refusal
        if not self.silent:
            yield self.answer

    async def _scale(self, action: Action) -> AsyncIterator[SupervisedFleets]:
        if self.refusal is not None:
            raise self.refusal
        self.actions.append(action)
        yield self.answer


@pytest.fixture
async def runtime() -> AsyncIterator[DistributedRuntime]:
    runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    yield runtime
    await runtime.close(graceful=False)


@pytest.fixture
async def supervisor(runtime: DistributedRuntime) -> Supervisor:
    supervisor = Supervisor()
    await supervisor.start(runtime.sibling())
    return supervisor


@pytest.fixture
async def connector(runtime: DistributedRuntime) -> AsyncIterator[LocalConnector]:
    connector = LocalConnector(runtime, "ns")
    yield connector
    await connector.close()


async def test_fleets(supervisor: Supervisor, connector: LocalConnector) -> None:
    assert not connector.converts
    supervisor.answer = SupervisedFleets(
        fleets=(
            SupervisedFleet(role=P, desired=2, ready=1, starting_s=(1.5,)),
            SupervisedFleet(role=D, desired=1, ready=1, draining=2),
        ),
        converts=True,
    )
    assert await connector.fleets() == {
        P: Fleet(desired=2, ready=1, starting_s=(1.5,)),
        D: Fleet(desired=1, ready=1, draining=2),
    }
    assert connector.converts


async def test_planners_that_work_against_each_other(
    runtime: DistributedRuntime, supervisor: Supervisor, connector: LocalConnector
) -> None:
    for planner in (runtime.sibling(), runtime.sibling()):
        assert not connector.problems
        await Decisions(SETTINGS).serve(planner.endpoint("ns.planner.decisions"))
    await eventually(lambda: bool(connector.problems))
    assert "2 planners run in namespace 'ns'" in connector.problems[0]


async def test_actions(supervisor: Supervisor, connector: LocalConnector) -> None:
    actions: list[Action] = [Scale(role=A, workers=3), Convert(source=D, destination=P, workers=1)]
    for action in actions:
        await connector.apply(action)
    assert supervisor.actions == actions


async def test_no_supervisor(connector: LocalConnector) -> None:
    with pytest.raises(UnavailableError, match="no `dynamo serve` supervises workers in namespace 'ns'"):
        await connector.fleets()
    with pytest.raises(UnavailableError):
        await connector.apply(Scale(role=A, workers=3))


async def test_supervisor_that_comes_later(runtime: DistributedRuntime, connector: LocalConnector) -> None:
    with pytest.raises(UnavailableError):
        await connector.fleets()
    await Supervisor().start(runtime.sibling())

    async def until_it_answers() -> Mapping[WorkerType, Fleet]:
        while True:
            with contextlib.suppress(UnavailableError):
                return await connector.fleets()
            await asyncio.sleep(0)

    assert (await within(until_it_answers()))[A].desired == 1


async def test_a_supervisor_that_says_nothing(supervisor: Supervisor, connector: LocalConnector) -> None:
    supervisor.silent = True
    with pytest.raises(UnavailableError, match="says nothing"):
        await connector.fleets()


async def test_two_supervisors(runtime: DistributedRuntime, supervisor: Supervisor) -> None:
    other = Supervisor()
    await other.start(runtime.sibling())
    connector = LocalConnector(runtime, "ns")
    with pytest.raises(UnavailableError, match="2 of `dynamo serve`"):
        await connector.apply(Scale(role=A, workers=3))
    assert supervisor.actions + other.actions == []
    await connector.close()


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (InvalidRequestError("no"), InvalidRequestError),
        (UnavailableError("later"), UnavailableError),
        (InternalError("a defect"), UnavailableError),
    ],
)
async def test_refusals(
    supervisor: Supervisor, connector: LocalConnector, refusal: DynamoError, expected: type[DynamoError]
) -> None:
    supervisor.refusal = refusal
    asking: list[Callable[[], Any]] = [connector.fleets, lambda: connector.apply(Scale(role=A, workers=1))]
    for ask in asking:
        with pytest.raises(expected, match=refusal.message):
            await ask()
