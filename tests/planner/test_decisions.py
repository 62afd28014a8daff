"""Whoever asks hears what was decided."""

import asyncio
from contextlib import aclosing

from dynamo.planner.decision import Decision
from dynamo.planner.decisions import KEPT, Decisions, DecisionsRequest, PlannerReport, PlannerSettings
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.runtime.handler import closing
from dynamo.testing import within

SETTINGS = PlannerSettings(
    connector="virtual", mode="both", predictor="constant", advisory=False, ttft_ms=500, itl_ms=50, interval_s=5
)


def decided(*numbers: int) -> Decisions:
    decisions = Decisions(SETTINGS)
    for number in numbers:
        decisions.add(Decision(number=number, at_s=float(number)))
    return decisions


async def numbers(decisions: Decisions, last: int) -> list[int]:
    return [report.decision.number async for report in decisions.report(DecisionsRequest(last=last))]


async def test_the_last_ones() -> None:
    decisions = decided(1, 2, 3)
    assert await numbers(decisions, 1) == [3]
    assert await numbers(decisions, 2) == [2, 3]
    assert await numbers(decisions, 9) == [1, 2, 3]
    assert await numbers(decisions, 0) == await numbers(decisions, -1) == []
    assert await numbers(decided(), 1) == []


async def test_only_so_many_are_kept() -> None:
    assert len(await numbers(decided(*range(1, KEPT + 50)), KEPT + 50)) == KEPT


async def test_followers_hear_of_each_that_comes() -> None:
    decisions = decided(1)
    async with closing(decisions.report(DecisionsRequest(follow=True))) as reports:
        assert (await within(anext(reports))).decision.number == 1
        following = asyncio.ensure_future(anext(reports))
        await asyncio.sleep(0)
        decisions.add(Decision(number=2, at_s=2.0))
        assert (await within(following)).decision.number == 2
        decisions.add(Decision(number=3, at_s=3.0))
        decisions.add(Decision(number=4, at_s=4.0))
        assert [(await within(anext(reports))).decision.number for _ in range(2)] == [3, 4]


async def test_a_follower_may_come_before_the_first() -> None:
    decisions = decided()
    async with closing(decisions.report(DecisionsRequest(follow=True))) as reports:
        first = asyncio.ensure_future(anext(reports))
        await asyncio.sleep(0)
        decisions.add(Decision(number=1, at_s=1.0))
        assert (await within(first)).decision.number == 1


async def test_a_slow_follower_goes_on_with_those_that_are_kept() -> None:
    decisions = decided(1)
    async with closing(decisions.report(DecisionsRequest(follow=True))) as reports:
        assert (await within(anext(reports))).decision.number == 1
        for number in range(2, KEPT + 100):
            decisions.add(Decision(number=number, at_s=0.0))
        assert (await within(anext(reports))).decision.number == 100


async def test_over_the_request_plane() -> None:
    runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    endpoint = runtime.endpoint("n.planner.decisions")
    await decided(1, 2).serve(endpoint)
    client = await endpoint.client(response_type=PlannerReport)
    await within(client.wait_for_instances())
    async with aclosing(await client.generate(DecisionsRequest(last=1), annotated=False)) as reports:
        (report,) = [report async for report in reports]
    assert report.decision == Decision(number=2, at_s=2.0)
    assert report.settings == SETTINGS
    assert report.age_s >= 0
    await runtime.close()
