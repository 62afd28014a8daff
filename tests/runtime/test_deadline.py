"""The end of a request's time."""

import asyncio
import time

import pytest

from dynamo.errors import DeadlineExceededError
from dynamo.runtime.context import Context
from dynamo.runtime.deadline import in_time
from dynamo.testing import within


@pytest.mark.parametrize("timeout_s", [0.01, 0.0, -5.0])
async def test_what_takes_too_long_is_cancelled(timeout_s: float) -> None:
    cancelled = False

    async def work() -> None:
        nonlocal cancelled
        async with in_time(Context(deadline_s=time.monotonic() + timeout_s)):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled = True
                raise

    with pytest.raises(DeadlineExceededError):
        await within(work())
    assert cancelled


@pytest.mark.parametrize("deadline_s", [None, float("inf")])
async def test_what_is_in_time(deadline_s: float | None) -> None:
    async with in_time(Context(deadline_s=deadline_s)):
        await asyncio.sleep(0)


async def test_timeouts_of_others_stay_theirs() -> None:
    with pytest.raises(TimeoutError):
        async with in_time(Context(deadline_s=time.monotonic() + 60)):
            raise TimeoutError
