"""Waiting with a deadline, so that a test that would hang fails instead."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE_S = 10.0  # far more than anything takes on a busy machine

_POLL_INTERVAL_S = 0.01


async def within(awaitable: Awaitable[T], seconds: float = DEADLINE_S) -> T:
    """The result of `awaitable`; TimeoutError when it takes longer."""
    async with asyncio.timeout(seconds):
        return await awaitable


async def eventually(condition: Callable[[], bool], seconds: float = DEADLINE_S) -> None:
    """Waits for what no event announces, such as the state of another process; TimeoutError when it takes longer."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nothing would set an event
            await asyncio.sleep(_POLL_INTERVAL_S)
