"""Frontends that count, and come and go."""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from dynamo.errors import UnavailableError
from dynamo.planner.frontend_source import FrontendSource
from dynamo.planner.observation import Traffic
from dynamo.protocols.traffic import ModelTraffic
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.testing import eventually, within

TRAFFIC = "n.frontend.traffic"
INTERVAL_S = 5.0  # between two looks, by the source's clock


@dataclass(slots=True)
class Counting:
    """A frontend's endpoint; its models are what the test says."""

    runtime: DistributedRuntime
    models: list[Any] = field(default_factory=list)
    hangs: bool = False
    asked: int = 0

    def count(self, requests: int, *, model: str = "m", uptime_s: float = 0.0, **figures: Any) -> None:
        self.models = [ModelTraffic(model=model, uptime_s=uptime_s, arrived_requests=requests, **figures)]

    async def answer(self, request: object) -> AsyncIterator[list[Any]]:
        self.asked += 1
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        yield self.models


class Fleet:
    """Frontends, and who asks them."""

    def __init__(self, *, model: str | None = None, timeout_s: float = 5.0) -> None:
        config = RuntimeConfig(discovery_backend="mem", request_plane="inproc")
        self.runtime = DistributedRuntime(config=config)
        self.frontends: list[Counting] = []
        self.client = self.runtime.client(self.runtime.endpoint(TRAFFIC).id, list[ModelTraffic])
        self.now_s = 100.0
        self.source = FrontendSource(self.client, model=model, timeout_s=timeout_s, clock=lambda: self.now_s)

    async def add(self) -> Counting:
        frontend = Counting(DistributedRuntime(config=self.runtime.config, shared=self.runtime.shared))
        await frontend.runtime.endpoint(TRAFFIC).start(frontend.answer)
        self.frontends.append(frontend)
        await self._known()
        return frontend

    async def remove(self, frontend: Counting) -> None:
        self.frontends.remove(frontend)
        await frontend.runtime.close(graceful=False)
        await self._known()

    async def traffic(self) -> Traffic:
        self.now_s += INTERVAL_S
        return await within(self.source.traffic())

    async def look(self) -> None:
        """The first one, from which on figures count."""
        with pytest.raises(UnavailableError, match="second look"):
            await self.traffic()

    async def close(self) -> None:
        for frontend in self.frontends:
            await frontend.runtime.close(graceful=False)
        await self.runtime.close()

    async def _known(self) -> None:
        await eventually(lambda: len(self.client.instance_ids()) == len(self.frontends))


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    made = Fleet()
    yield made
    await made.close()


async def test_what_was_added_at_all_frontends_together(fleet: Fleet) -> None:
    first, second = await fleet.add(), await fleet.add()
    first.count(1000, prompts=1000, prompt_tokens=5)
    await fleet.look()
    first.count(1010, prompts=1010, prompt_tokens=105)
    second.count(10, prompts=10, prompt_tokens=300)
    traffic = await fleet.traffic()
    assert (traffic.requests, traffic.duration_s, traffic.prompt_tokens) == (20, INTERVAL_S, 20)
    quiet = await fleet.traffic()
    assert (quiet.requests, quiet.duration_s, quiet.prompt_tokens) == (0, INTERVAL_S, None)


async def test_a_restarted_frontend_counts_from_zero(fleet: Fleet) -> None:
    before = await fleet.add()
    before.count(1000)
    await fleet.look()
    await fleet.remove(before)
    after = await fleet.add()
    after.count(3)
    assert (await fleet.traffic()).requests == 3


async def test_one_that_has_gone_is_no_negative_traffic(fleet: Fleet) -> None:
    stays, goes = await fleet.add(), await fleet.add()
    stays.count(10)
    goes.count(1000)
    await fleet.look()
    await fleet.remove(goes)
    stays.count(14)
    assert (await fleet.traffic()).requests == 4


async def test_one_that_was_there_and_not_known_is_no_burst(fleet: Fleet) -> None:
    """Such as after discovery was away: what it has counted in its life was not asked for just now."""
    await fleet.add()
    await fleet.look()
    old = await fleet.add()
    old.count(1_000_000, uptime_s=3600.0)
    with pytest.raises(UnavailableError, match="has not been heard of before"):
        await fleet.traffic()
    old.count(1_000_005, uptime_s=3605.0)
    assert (await fleet.traffic()).requests == 5


async def test_one_that_does_not_answer_in_time_is_missing() -> None:
    fleet = Fleet(timeout_s=0.05)
    try:
        answers, hangs = await fleet.add(), await fleet.add()
        await fleet.look()
        hangs.hangs = True
        answers.count(5)
        with pytest.raises(UnavailableError, match=r"1 of 2 frontends do not tell .* no answer within 0.05 s"):
            await fleet.traffic()
        hangs.hangs = False
        hangs.count(1000)
        assert (await fleet.traffic()).requests == 500, "of what it has counted meanwhile, the part of one interval"
    finally:
        await fleet.close()


async def test_one_that_is_silent_for_good_does_not_hold_up_the_planner() -> None:
    fleet = Fleet(timeout_s=0.01)
    try:
        answers, hangs = await fleet.add(), await fleet.add()
        await fleet.look()
        hangs.hangs = True
        for _ in range(11):
            with pytest.raises(UnavailableError, match="1 of 2 frontends do not tell"):
                await fleet.traffic()
        answers.count(5)
        assert (await fleet.traffic()).requests == 5
        (problem,) = fleet.source.problems
        assert problem.startswith("traffic: left out, as 1 of 2 frontends do not tell their traffic: ")
        hangs.hangs = False
        hangs.count(1300)
        assert (await fleet.traffic()).requests == 100, "one interval's of the thirteen since it last told"
        assert not fleet.source.problems
        hangs.hangs = True
        with pytest.raises(UnavailableError, match="1 of 2 frontends do not tell"):
            await fleet.traffic()
    finally:
        await fleet.close()


async def test_where_nobody_answers_the_traffic_is_never_nothing() -> None:
    fleet = Fleet(timeout_s=0.01)
    try:
        (await fleet.add()).hangs = True
        for _ in range(15):
            with pytest.raises(UnavailableError, match="1 of 1 frontends do not tell"):
                await fleet.traffic()
    finally:
        await fleet.close()


@pytest.mark.parametrize(
    "nonsense", [["x"], [{"model": "m", "arrived_requests": -1}], [ModelTraffic(model="m", ttft_s=math.nan)]]
)
async def test_nonsense_is_missing(fleet: Fleet, nonsense: list[Any]) -> None:
    frontend = await fleet.add()
    await fleet.look()
    frontend.models = nonsense
    with pytest.raises(UnavailableError, match="1 of 1 frontends do not tell"):
        await fleet.traffic()


async def test_no_frontend(fleet: Fleet) -> None:
    with pytest.raises(UnavailableError, match="no frontend in namespace 'n'"):
        await fleet.traffic()
    frontend = await fleet.add()
    frontend.count(2)
    assert (await fleet.traffic()).requests == 2, "it has begun since the last look"


async def test_of_one_model_only() -> None:
    fleet = Fleet(model="mine")
    try:
        frontend = await fleet.add()
        await fleet.look()
        frontend.models = [ModelTraffic(model=name, arrived_requests=n) for name, n in (("mine", 4), ("other", 50))]
        assert (await fleet.traffic()).requests == 4
    finally:
        await fleet.close()
