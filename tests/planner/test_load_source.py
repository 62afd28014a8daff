"""What workers say of their load, and those who say nothing."""

from collections.abc import AsyncIterator

import pytest

from dynamo.planner.load_source import LoadSource
from dynamo.planner.workers import Workers
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import WorkerType
from dynamo.testing import eventually

from .fleet import NAMESPACE, FakeFleet

INTERVAL_S = 0.02


@pytest.fixture
async def source(fleet: FakeFleet) -> AsyncIterator[LoadSource]:
    workers = Workers(fleet.runtime.discovery, NAMESPACE)
    made = LoadSource(fleet.runtime, workers, INTERVAL_S)
    yield made
    await made.close()
    workers.close()


async def test_loads_by_role_worker_and_rank(fleet: FakeFleet, source: LoadSource) -> None:
    decode, prefill = await fleet.add(WorkerType.Decode), await fleet.add(WorkerType.Prefill)
    decode.load = [WorkerLoad(dp_rank=0, running_requests=3), WorkerLoad(dp_rank=1, running_requests=4)]
    prefill.load = [WorkerLoad(waiting_requests=5)]
    await eventually(
        lambda: (
            source.loads().by_role
            == {
                WorkerType.Decode: {f"{decode.id:x}/0": decode.load[0], f"{decode.id:x}/1": decode.load[1]},
                WorkerType.Prefill: {f"{prefill.id:x}/0": prefill.load[0]},
            }
        )
    )
    assert not source.loads().problems


async def test_one_that_falls_silent_is_named(fleet: FakeFleet, source: LoadSource) -> None:
    tells, silent = await fleet.add(), await fleet.add()
    await eventually(lambda: len(source.loads().by_role.get(WorkerType.Aggregated, {})) == 2)
    silent.hangs = True
    await eventually(lambda: bool(source.loads().problems))
    loads = source.loads()
    assert list(loads.by_role[WorkerType.Aggregated]) == [f"{tells.id:x}/0"]
    assert list(loads.problems) == [f"1 of 2 aggregated workers do not say their load: {silent.id:x}"]
    silent.hangs = False
    await eventually(lambda: not source.loads().problems)


async def test_one_that_has_just_come_need_not_have_spoken(fleet: FakeFleet, source: LoadSource) -> None:
    worker = await fleet.add()
    worker.hangs = True
    assert source.loads().by_role == {WorkerType.Aggregated: {}}
    assert not source.loads().problems
    await eventually(lambda: bool(source.loads().problems))


async def test_one_that_has_gone_is_forgotten(fleet: FakeFleet, source: LoadSource) -> None:
    worker = await fleet.add()
    await eventually(lambda: bool(source.loads().by_role.get(WorkerType.Aggregated)))
    await fleet.remove(worker)
    await eventually(lambda: source.loads().by_role == {})
    assert not source.loads().problems
