"""Who is there, by discovery."""

from dynamo.planner.workers import Workers
from dynamo.protocols.model_card import WorkerType
from dynamo.testing import eventually

from .fleet import NAMESPACE, FakeFleet


async def test_by_role(fleet: FakeFleet) -> None:
    workers = Workers(fleet.runtime.discovery, NAMESPACE)
    assert workers.by_role() == {}
    decode, prefill = await fleet.add(WorkerType.Decode), await fleet.add(WorkerType.Prefill)
    expected = {WorkerType.Decode: {decode.id: decode.endpoint}, WorkerType.Prefill: {prefill.id: prefill.endpoint}}
    await eventually(lambda: workers.by_role() == expected)
    await fleet.remove(prefill)
    await eventually(lambda: workers.by_role() == {WorkerType.Decode: {decode.id: decode.endpoint}})
    workers.close()


async def test_one_that_takes_no_requests_is_not_there(fleet: FakeFleet) -> None:
    """Such as one whose engine has stalled: what it has announced stays."""
    worker = await fleet.add()
    workers = Workers(fleet.runtime.discovery, NAMESPACE)
    assert worker.id in workers.by_role()[WorkerType.Aggregated]
    await worker.runtime.suspend(worker.endpoint, "stalled")
    await eventually(lambda: workers.by_role() == {})
    await worker.runtime.resume(worker.endpoint)
    await eventually(lambda: WorkerType.Aggregated in workers.by_role())
    workers.close()


async def test_those_of_other_models_and_namespaces_do_not_count(fleet: FakeFleet) -> None:
    ours = await fleet.add(model="mine")
    await fleet.add(model="other")
    workers = Workers(fleet.runtime.discovery, NAMESPACE, "mine")
    elsewhere = Workers(fleet.runtime.discovery, "elsewhere")
    assert workers.by_role() == {WorkerType.Aggregated: {ours.id: ours.endpoint}}
    assert elsewhere.by_role() == {}
    for each in (workers, elsewhere):
        each.close()


async def test_entries_of_another_version_are_passed_over(fleet: FakeFleet) -> None:
    await fleet.runtime.register(f"models/{NAMESPACE}/x", b"{}")
    worker = await fleet.add()
    workers = Workers(fleet.runtime.discovery, NAMESPACE)
    assert list(workers.by_role()[WorkerType.Aggregated]) == [worker.id]
    workers.close()
