"""What the workers of a deployment say they are busy with."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

from dynamo.protocols.load import LOAD_ENDPOINT, WorkerLoad
from dynamo.runtime.client import Client
from dynamo.runtime.distributed import DistributedRuntime

_POLL_S = 0.02


class Loads:
    """Asks all workers of a component."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def ranks(self) -> list[WorkerLoad]:
        """What each data-parallel rank of each worker says."""
        loads: list[WorkerLoad] = []
        for instance_id in await self._client.wait_for_instances():
            async for ranks in await self._client.direct(None, instance_id, annotated=False):
                loads += ranks
        return loads

    async def requests(self) -> int:
        """How many requests are running or waiting, all workers together."""
        return sum(rank.running_requests + rank.waiting_requests for rank in await self.ranks())

    async def until_idle(self, seconds: float, poll_s: float = _POLL_S) -> None:
        """TimeoutError if the workers still have requests or hold KV blocks then."""
        async with asyncio.timeout(seconds):
            while not all(map(_is_idle, await self.ranks())):  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(poll_s)

    async def until_generated(self, tokens: Mapping[int, int], seconds: float) -> None:
        """TimeoutError if the ranks have not generated exactly so many tokens each, by rank, in time."""
        async with asyncio.timeout(seconds):
            while {rank.dp_rank: rank.generated_tokens for rank in await self.ranks()} != tokens:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)

    async def until(self, count: int, seconds: float) -> None:
        """TimeoutError if the workers don't have exactly `count` requests in time."""
        async with asyncio.timeout(seconds):
            while await self.requests() != count:  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(_POLL_S)


def _is_idle(rank: WorkerLoad) -> bool:
    return rank.running_requests + rank.waiting_requests + rank.kv_used_blocks == 0


class Fleet(Protocol):
    """Whose workers are asked, such as a Deployment's."""

    def runtime(self) -> DistributedRuntime:
        """Takes part in it; to be closed by who asks for it."""
        ...


@asynccontextmanager
async def loads(deployment: Fleet, namespace: str = "dynamo", *, component: str = "backend") -> AsyncIterator[Loads]:
    runtime = deployment.runtime()
    try:
        yield Loads(
            await runtime.endpoint(f"{namespace}.{component}.{LOAD_ENDPOINT}").client(response_type=list[WorkerLoad])
        )
    finally:
        await runtime.close()
