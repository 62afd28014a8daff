"""Worker processes tell a router in another process what they hold."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dynamo.protocols.generation import PreprocessedRequest, StopConditions, WorkerId
from dynamo.router.indexer import KvIndexer
from dynamo.router.publisher import KV_EVENTS_ENDPOINT
from dynamo.router.subscriber import FeedSubscriber
from dynamo.runtime.client import Client
from dynamo.runtime.event_feed import FeedItem
from dynamo.testing import eventually, within
from dynamo.testing.deployment import Deployment
from dynamo.tokens import sequence_hashes, token_array

pytestmark = pytest.mark.asyncio(loop_scope="session")

BLOCK_SIZE = 16
PROMPT = token_array(range(100))
SHUTDOWN_S = 15.0  # a worker waits twice as long for requests under way


@dataclass(frozen=True, slots=True)
class Router:
    generate: Client
    indexer: KvIndexer

    async def ask(self, worker: int) -> None:
        request = PreprocessedRequest(model="m", token_ids=PROMPT, stop_conditions=StopConditions(max_tokens=2))
        async for _ in await self.generate.direct(request, worker, annotated=False):
            pass

    def found(self) -> dict[WorkerId, int]:
        return self.indexer.tree.find_matches(sequence_hashes(PROMPT, BLOCK_SIZE)).scores


@asynccontextmanager
async def router(deployment: Deployment) -> AsyncIterator[Router]:
    runtime = deployment.runtime()
    generate = await runtime.endpoint("dynamo.backend.generate").client()
    events = await runtime.endpoint(f"dynamo.backend.{KV_EVENTS_ENDPOINT}").client(response_type=FeedItem)
    indexer = KvIndexer()
    subscriber = FeedSubscriber(events, indexer)
    try:
        yield Router(generate, indexer)
    finally:
        await subscriber.close()
        await runtime.close()


async def test_mockers(own: Deployment, tiny_model: Path) -> None:
    async with router(own) as early:
        killed, stopped = await asyncio.gather(
            *(own.mocker(tiny_model, "m", "--block-size", str(BLOCK_SIZE)) for _ in range(2))
        )
        await eventually(lambda: len(early.generate.instance_ids()) == 2)
        first, second = early.generate.instance_ids()
        await within(early.ask(first))
        await eventually(lambda: early.found() == {WorkerId(first): 6})
        await within(early.ask(second))
        await eventually(lambda: early.found() == {WorkerId(first): 6, WorkerId(second): 6})

        async with router(own) as late:
            await eventually(lambda: late.found() == early.found())

            killed.signal(signal.SIGKILL)
            await eventually(lambda: len(early.found()) == len(late.found()) == 1)
            stopped.signal(signal.SIGTERM)  # nobody's subscription holds it up
            assert await within(stopped.exit_code(), SHUTDOWN_S) == 0
            await eventually(lambda: not early.found() and not late.found())
