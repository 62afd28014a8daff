"""What the workers of a deployment say they are busy with."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dynamo.runtime.client import Client
from dynamo.testing.deployment import Deployment

_POLL_S = 0.02


class Loads:
    """Asks all workers of NAMESPACE.backend."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def requests(self) -> int:
        """How many requests are running or waiting, all workers together."""
        total = 0
        for instance_id in await self._client.wait_for_instances():
            async for ranks in await self._client.direct(None, instance_id, annotated=False):
                total += sum(rank.get("running_requests", 0) + rank.get("waiting_requests", 0) for rank in ranks)
        return total

    async def until(self, count: int, seconds: float) -> None:
        """TimeoutError if the workers don't have exactly `count` requests in time."""
        async with asyncio.timeout(seconds):
            while await self.requests() != count:  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def loads(deployment: Deployment, namespace: str = "dynamo") -> AsyncIterator[Loads]:
    runtime = deployment.runtime()
    try:
        yield Loads(await runtime.endpoint(f"{namespace}.backend.load").client())
    finally:
        await runtime.close()
