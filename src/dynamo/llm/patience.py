"""How long a request that has lost its worker looks for another one."""

import asyncio
import time

from dynamo.errors import DrainingError, DynamoError, NobodyLeftError, RequestCancelledError, UnavailableError
from dynamo.runtime.backoff import Backoff
from dynamo.runtime.context import Context
from dynamo.runtime.deadline import in_time

_PAUSE_MIN_S = 0.1  # between two attempts
_PAUSE_MAX_S = 1.0
_NEWS_S = 1.0  # how long news of workers may be under way


class Patience:
    """Of one request, since it was lost."""

    def __init__(self, context: Context, wait_s: float) -> None:
        self._context = context
        self._wait_s = wait_s
        self._lost = False  # whether a worker has had it
        self._give_up_s: float | None = None  # on time.monotonic(); None: it has not looked in vain yet
        self._pauses = Backoff(_PAUSE_MIN_S, _PAUSE_MAX_S)

    async def wait(self, failure: DynamoError, *, begun: bool) -> None:
        """Returns when it is time to try again; raises `failure` where there is no point in that.

        A request that no worker has `begun` with yet does not wait: its client is told at once. But for one that a
        worker has refused because it leaves: it would not have been asked if it were known that it does, so another one
        may have taken its place of which nothing is known either. Raises RequestCancelledError and
        DeadlineExceededError too.
        """
        now_s = time.monotonic()
        if not isinstance(failure, UnavailableError):
            raise failure
        if not self._lost and (begun or isinstance(failure, NobodyLeftError)):
            self._lost = True
            self._give_up_s = now_s + self._wait_s
        elif self._give_up_s is None and isinstance(failure, DrainingError):
            self._give_up_s = now_s + min(_NEWS_S, self._wait_s)
        if self._give_up_s is None:
            raise failure
        if now_s >= self._give_up_s:
            raise failure
        async with in_time(self._context):
            await self._pause(min(self._pauses.next_s(), self._give_up_s - now_s))

    async def _pause(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._context.async_killed_or_stopped()
        except TimeoutError:
            return
        raise RequestCancelledError("the request was cancelled")
