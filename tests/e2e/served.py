"""Waiting for what a frontend serves."""

import asyncio

from dynamo.testing.deployment import START_S

from .raw_http import get

MOCK = "mock"  # what the shared deployment serves: two mockers
ECHO = "org/echo"  # and an echo engine
_POLL_S = 0.02


async def instances(url: str) -> list[int]:
    """The ids of the workers that the frontend at `url` can send requests to."""
    health = (await get(url, "/health")).json()
    return [instance["instance_id"] for instance in health["instances"]]


async def until_served(url: str, count: int) -> list[int]:
    """Waits until the frontend knows exactly `count` workers; returns their ids."""
    async with asyncio.timeout(START_S):
        while len(ids := await instances(url)) != count:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(_POLL_S)
    return ids
