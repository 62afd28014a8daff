"""One observation out of what several say, or do not say."""

import asyncio
import gc
import math

from dynamo.errors import DynamoError, UnavailableError
from dynamo.planner.load_source import Loads
from dynamo.planner.observation import Fleet, Traffic
from dynamo.planner.source import Source
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import WorkerType
from dynamo.testing import within

from .scripted_connector import ScriptedConnector

AGGREGATED = WorkerType.Aggregated
TRAFFIC = Traffic(
    duration_s=5, requests=3, prompt_tokens=1, cached_tokens=0, output_tokens=1, ttft_s=math.nan, itl_s=None
)


class ScriptedTraffic:
    def __init__(self, answer: Traffic | DynamoError | None) -> None:
        self.answer = answer  # None: it never comes
        self.problems = ["one is left out"]

    async def traffic(self) -> Traffic:
        if self.answer is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(self.answer, DynamoError):
            raise self.answer
        assert self.answer is not None
        return self.answer

    async def close(self) -> None: ...


class ScriptedLoads:
    def loads(self) -> Loads:
        return Loads(by_role={AGGREGATED: {"a/0": WorkerLoad()}}, problems=["one is silent"])


def source(answer: Traffic | DynamoError | None, connector: ScriptedConnector) -> Source:
    return Source(ScriptedTraffic(answer), ScriptedLoads(), connector, traffic_timeout_s=0.02, connector_timeout_s=0.02)


async def test_all_that_is_known() -> None:
    found = {AGGREGATED: Fleet(desired=2, ready=1), WorkerType.Prefill: Fleet(desired=1, ready=1)}
    connector = ScriptedConnector(found=found, problems=["nobody listens"])
    observation = await within(source(TRAFFIC, connector).observe(["said before", "one is silent"]))
    assert observation.traffic == TRAFFIC, "what makes no sense is for those to judge who decide"
    assert observation.fleets is not None
    assert observation.fleets[AGGREGATED] == Fleet(desired=2, ready=1, loads={"a/0": WorkerLoad()})
    assert observation.fleets[WorkerType.Prefill].loads == {}
    assert observation.problems == ("said before", "one is silent", "one is left out", "nobody listens")


async def test_what_fails_is_missing_and_said() -> None:
    connector = ScriptedConnector(fails=UnavailableError("gone"))
    observation = await within(source(UnavailableError("no frontend"), connector).observe())
    assert observation.traffic is None
    assert observation.fleets is None
    assert observation.problems == ("traffic: no frontend", "workers: gone", "one is silent")


async def test_what_does_not_answer_in_time_is_missing() -> None:
    observation = await within(source(None, ScriptedConnector(hangs=True)).observe())
    assert (observation.traffic, observation.fleets) == (None, None)
    assert "traffic: no answer within 0.02 s" in observation.problems
    assert "workers: no answer within 0.02 s" in observation.problems


async def test_one_does_not_wait_for_the_other() -> None:
    connector = ScriptedConnector(found={AGGREGATED: Fleet(desired=1, ready=1)})
    observation = await within(source(None, connector).observe())
    assert observation.traffic is None
    assert observation.fleets is not None


async def test_nothing_is_left_of_one_that_is_cancelled_as_it_begins() -> None:
    """A coroutine that nobody has awaited would be told of, which fails a test."""
    observing = asyncio.create_task(source(TRAFFIC, ScriptedConnector()).observe())
    asyncio.get_running_loop().call_soon(observing.cancel)
    await asyncio.wait([observing])
    del observing
    gc.collect()
