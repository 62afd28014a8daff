"""The inter-token deadline: ends the wait for a worker that has begun to answer and then falls silent."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dynamo.errors import WorkerStalledError
from dynamo.runtime.context import Context


class StallWatch:
    """Of one worker's answer. Costs a timestamp per output: its timer looks at that when it is due, and then again."""

    __slots__ = ("_context", "_timeout", "_timeout_s", "_timer", "last_s")

    def __init__(self, context: Context, timeout: asyncio.Timeout, timeout_s: float) -> None:
        """`timeout` is made to expire `timeout_s` seconds after `last_s`, the time that the reader was behind aside."""
        self._context = context
        self._timeout = timeout
        self._timeout_s = timeout_s
        self.last_s: float | None = None  # on time.monotonic(), the latest output; None: there was none yet
        self._timer = self._look_again_in(timeout_s)

    def close(self) -> None:
        self._timer.cancel()

    def flow_changed(self, _: Context) -> None:
        """Nothing can come while the reader is behind, so waiting begins anew when it has caught up."""
        if self.last_s is not None:
            self.last_s = time.monotonic()

    def _look_again_in(self, delay_s: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        left_s = self._timeout_s
        if self.last_s is not None and not self._context.is_paused():
            left_s -= time.monotonic() - self.last_s
        if left_s > 0:
            self._timer = self._look_again_in(left_s)
        else:
            self._timeout.reschedule(asyncio.get_running_loop().time())


@asynccontextmanager
async def watched(context: Context, timeout_s: float) -> AsyncIterator[StallWatch]:
    """Raises WorkerStalledError, in place of what the block is waiting for, when `last_s` is too long ago.

    Without limit where `timeout_s` is 0, and until `last_s` is set for the first time.
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
