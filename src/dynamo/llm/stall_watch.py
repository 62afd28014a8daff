"""The inter-token deadline: ends the wait for a worker that has begun to answer and then falls silent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dynamo.errors import WorkerStalledError
from dynamo.runtime.context import Context

_LOOKS = 4  # in the time that is waited


class StallWatch:
    """Of one worker's answer. Costs a flag per output, which a timer looks at now and then.

    Silence is counted in looks: while this process itself is held up none is taken, and what has come meanwhile is read
    before the next.
    """

    __slots__ = ("_context", "_interval_s", "_looks_left", "_timeout", "_timer", "heard")

    def __init__(self, context: Context, timeout: asyncio.Timeout, timeout_s: float) -> None:
        """`timeout` is made to expire after a silence of `timeout_s` seconds, or up to a quarter more."""
        self._context = context
        self._timeout = timeout
        self._interval_s = timeout_s / _LOOKS
        self._looks_left: int | None = None  # None: there was no output yet
        self.heard = False  # an output came since the last look
        self._timer = self._look_later()

    def close(self) -> None:
        self._timer.cancel()

    def flow_changed(self, _: Context) -> None:
        """Nothing can come while the reader is behind, so waiting begins anew when it has caught up."""
        self.heard = self.heard or self._looks_left is not None

    def _look_later(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._interval_s, self._look)

    def _look(self) -> None:
        if self.heard:
            self.heard, self._looks_left = False, _LOOKS
        elif self._looks_left is not None:
            self._looks_left = _LOOKS if self._context.is_paused() else self._looks_left - 1
        if self._looks_left == 0:
            self._timeout.reschedule(asyncio.get_running_loop().time())
        else:
            self._timer = self._look_later()


@asynccontextmanager
async def watched(context: Context, timeout_s: float) -> AsyncIterator[StallWatch]:
    """Raises WorkerStalledError, in place of what the block is waiting for, when nothing has been `heard` for too long.

    Without limit where `timeout_s` is 0, and until something is heard for the first time.
    """
    try:
        async with asyncio.timeout(None) as timeout:
            watch = StallWatch(context, timeout, timeout_s)
            unfollow = context.on_flow(watch.flow_changed)
            if not timeout_s:
                watch.close()
            try:
                yield watch
            finally:
                unfollow()
                watch.close()
    except TimeoutError as error:
        if not timeout.expired():
            raise
        raise WorkerStalledError(f"the worker has said nothing for {timeout_s:g} s") from error
