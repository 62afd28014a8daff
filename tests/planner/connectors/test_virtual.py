"""A target that is published, acknowledged, and carried out by somebody else."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from dynamo.errors import InvalidRequestError, UnavailableError, UnsupportedFeatureError
from dynamo.planner.connectors.virtual import VirtualConnector
from dynamo.planner.decision import Convert, Scale
from dynamo.planner.observation import Fleet
from dynamo.planner.scaling import ScalingRequest, ScalingTarget
from dynamo.planner.workers import Workers
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.handler import closing
from dynamo.testing import eventually, within

from ..fleet import NAMESPACE, FakeFleet

AGGREGATED, PREFILL, DECODE = WorkerType.Aggregated, WorkerType.Prefill, WorkerType.Decode


@pytest.fixture
async def connector(fleet: FakeFleet) -> AsyncIterator[VirtualConnector]:
    made = VirtualConnector(Workers(fleet.runtime.discovery, NAMESPACE), acknowledge_timeout_s=0.0)
    yield made
    await made.close()


async def tell(connector: VirtualConnector, request: ScalingRequest) -> ScalingTarget:
    async with closing(connector.scaling(request)) as targets:
        return await within(anext(targets))


async def only(connector: VirtualConnector, role: WorkerType = AGGREGATED) -> Fleet:
    return (await connector.fleets())[role]


async def until(connector: VirtualConnector, condition: Callable[[Fleet], bool]) -> Fleet:
    """Waits for discovery's news."""
    async with asyncio.timeout(10):
        while not condition(fleet := await only(connector)):  # noqa: ASYNC110 - discovery's state
            await asyncio.sleep(0)
    return fleet


async def test_what_is_there_is_what_is_wanted_until_something_is_decided(
    fleet: FakeFleet, connector: VirtualConnector
) -> None:
    with pytest.raises(UnavailableError, match="no worker has been seen yet"):
        await connector.fleets()
    await fleet.add(DECODE)
    await fleet.add(PREFILL)
    assert await connector.fleets() == {DECODE: Fleet(desired=1, ready=1), PREFILL: Fleet(desired=1, ready=1)}
    target = await tell(connector, ScalingRequest())
    assert (target.id, target.workers, target.acknowledged) == (0, {DECODE: 1, PREFILL: 1}, True)


async def test_workers_that_come_one_after_the_other_are_all_wanted(
    fleet: FakeFleet, connector: VirtualConnector
) -> None:
    await fleet.add()
    assert await until(connector, lambda found: found.ready == 1) == Fleet(desired=1, ready=1)
    await fleet.add()
    assert await until(connector, lambda found: found != Fleet(desired=1, ready=1)) == Fleet(desired=2, ready=2)
    await connector.apply(Scale(role=AGGREGATED, workers=2))
    await fleet.add()
    assert await until(connector, lambda found: bool(found.draining)) == Fleet(desired=2, ready=2, draining=1)


async def test_workers_come_as_they_were_wanted(fleet: FakeFleet, connector: VirtualConnector) -> None:
    await fleet.add()
    await only(connector)
    await connector.apply(Scale(role=AGGREGATED, workers=3))
    starting = await only(connector)
    assert (starting.desired, starting.ready, len(starting.starting_s)) == (3, 1, 2)
    await fleet.add()
    later = await until(connector, lambda found: found.ready == 2)
    assert len(later.starting_s) == 1
    assert later.starting_s[0] > 0, "it has been starting since it was wanted"
    await fleet.add()
    assert (await until(connector, lambda found: found.ready == 3)).starting_s == ()


async def test_those_beyond_the_target_are_on_their_way_out(fleet: FakeFleet, connector: VirtualConnector) -> None:
    worker, _ = await fleet.add(), await fleet.add()
    await only(connector)
    await connector.apply(Scale(role=AGGREGATED, workers=1))
    assert await only(connector) == Fleet(desired=1, ready=1, draining=1)
    await fleet.remove(worker)
    await until(connector, lambda found: found == Fleet(desired=1, ready=1))


async def test_a_role_whose_workers_have_all_gone_is_still_there(fleet: FakeFleet, connector: VirtualConnector) -> None:
    worker = await fleet.add()
    await only(connector)
    await fleet.remove(worker)
    lost = await until(connector, lambda found: found.ready == 0)
    assert (lost.desired, len(lost.starting_s)) == (1, 1)


async def test_acknowledged_in_time_or_not(fleet: FakeFleet, connector: VirtualConnector) -> None:
    await fleet.add()
    await only(connector)
    assert not connector.problems
    await connector.apply(Scale(role=AGGREGATED, workers=2))
    (problem,) = connector.problems
    assert problem == "nobody has acknowledged target 1 within 0 s: `dynamo planner acknowledge 1` does"
    await tell(connector, ScalingRequest(acknowledge=0))
    assert connector.problems, "that one was overtaken"
    target = await tell(connector, ScalingRequest(acknowledge=1))
    assert (target.id, target.acknowledged) == (1, True)
    assert not connector.problems


async def test_outside_may_have_other_numbers(fleet: FakeFleet, connector: VirtualConnector) -> None:
    await fleet.add()
    await only(connector)
    await connector.apply(Scale(role=AGGREGATED, workers=5))
    target = await tell(connector, ScalingRequest(acknowledge=1, workers={AGGREGATED: 2}))
    assert target.workers == {AGGREGATED: 2}
    assert (await only(connector)).desired == 2


@pytest.mark.parametrize(
    "request_",
    [
        ScalingRequest(acknowledge=1),
        ScalingRequest(acknowledge=-1),
        ScalingRequest(acknowledge=0, workers={AGGREGATED: -1}),
        ScalingRequest(acknowledge=0, workers={AGGREGATED: 10**9}),
        ScalingRequest(acknowledge=0, workers={DECODE: 1}),
        ScalingRequest(workers={AGGREGATED: 1}),
    ],
)
async def test_what_cannot_be_acknowledged(
    fleet: FakeFleet, connector: VirtualConnector, request_: ScalingRequest
) -> None:
    await fleet.add()
    await only(connector)
    with pytest.raises(InvalidRequestError):
        await tell(connector, request_)


async def test_workers_of_another_kind_take_the_place_of_those_that_have_gone(
    fleet: FakeFleet, connector: VirtualConnector
) -> None:
    worker = await fleet.add()
    await until(connector, lambda fleet: fleet.ready == 1)
    await fleet.remove(worker)
    await until(connector, lambda fleet: fleet.ready == 0)
    await fleet.add(PREFILL)
    await fleet.add(DECODE)
    assert (await connector.fleets()).keys() == {PREFILL, DECODE}


async def test_followers_hear_of_each_target(fleet: FakeFleet, connector: VirtualConnector) -> None:
    await fleet.add()
    await only(connector)
    async with closing(connector.scaling(ScalingRequest(follow=True))) as targets:
        assert (await within(anext(targets))).id == 0
        following = asyncio.ensure_future(anext(targets))
        await asyncio.sleep(0)
        await connector.apply(Scale(role=AGGREGATED, workers=2))
        target = await within(following)
        assert (target.id, target.workers, target.acknowledged) == (1, {AGGREGATED: 2}, False)


async def test_it_converts_nothing(connector: VirtualConnector) -> None:
    assert not connector.converts
    with pytest.raises(UnsupportedFeatureError):
        await connector.apply(Convert(source=PREFILL, destination=DECODE, workers=1))


async def test_over_the_request_plane(fleet: FakeFleet, connector: VirtualConnector) -> None:
    await fleet.add()
    await only(connector)
    endpoint = fleet.runtime.endpoint(f"{NAMESPACE}.planner.scaling")
    await connector.serve(endpoint)
    client = await endpoint.client(response_type=ScalingTarget)
    await eventually(lambda: bool(client.instance_ids()))
    async with closing(await client.generate(ScalingRequest(), annotated=False)) as answers:
        (target,) = [each async for each in answers]
    assert target.workers == {AGGREGATED: 1}
