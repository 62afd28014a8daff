"""The end of a request's time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from dynamo.errors import DeadlineExceededError
from dynamo.runtime.context import Context

_ENDLESS = nullcontext()  # a timer that never rings would cost each request some microseconds


def in_time(context: Context) -> AbstractAsyncContextManager[None]:
    """Cancels the block at the context's deadline, if it has one, and raises DeadlineExceededError then."""
    return _ENDLESS if context.deadline_s is None else _timed(context)


@asynccontextmanager
async def _timed(context: Context) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(context.remaining_s()) as timer:
            yield
    except TimeoutError:
        if not timer.expired():
            raise
        raise DeadlineExceededError("the request's deadline passed") from None
