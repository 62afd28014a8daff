"""The end of a request's time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dynamo.errors import DeadlineExceededError
from dynamo.runtime.context import Context


@asynccontextmanager
async def in_time(context: Context) -> AsyncIterator[None]:
    """Cancels the block at the context's deadline, and raises DeadlineExceededError then."""
    try:
        async with asyncio.timeout(context.remaining_s()) as timer:
            yield
    except TimeoutError:
        if not timer.expired():
            raise
        raise DeadlineExceededError("the request's deadline passed") from None
