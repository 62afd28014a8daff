"""The caller's end of a call: a stream of payloads with a credit window."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from dynamo.errors import DeadlineExceededError, DynamoError, RequestCancelledError
from dynamo.runtime.codec import ITEM_OVERHEAD_BYTES
from dynamo.runtime.context import Context

# What a callee may send before the caller has consumed anything: small enough that thousands of slow callers fit into
# memory, large enough that an ordinary answer never waits for credit.
WINDOW_BYTES = 256 << 10


class CallerPort(Protocol):
    """What a Reply needs of its connection."""

    def grant(self, stream_id: int, size_bytes: int) -> None: ...
    def stop(self, stream_id: int, *, kill: bool) -> None: ...
    def forget(self, stream_id: int) -> None: ...
    def soon(self, callback: Callable[[], None]) -> None: ...


class Reply:
    """Iterates over the payloads of a reply in order; raises the DynamoError that ended the call.

    aclose() gives the call up, which kills it at the other end.
    """

    __slots__ = (
        "_consumed_bytes",
        "_ended",
        "_error",
        "_items",
        "_port",
        "_stream_id",
        "_timer",
        "_unfollow",
        "_waiter",
    )

    def __init__(self, port: CallerPort, stream_id: int) -> None:
        self._port = port
        self._stream_id = stream_id
        self._items: deque[msgspec.Raw] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: DynamoError | None = None
        self._consumed_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._unfollow: Callable[[], None] | None = None

    def follow(self, context: Context) -> None:
        """Ends with the context, which may have ended already; to be called when the call is on its way."""
        remaining_s = context.remaining_s()
        if remaining_s is not None:
            self._timer = asyncio.get_running_loop().call_later(remaining_s, self._on_deadline)
        self._unfollow = context.on_stop(self._on_stop)
        if self._ended:
            self._unfollow()

    def __aiter__(self) -> "Reply":
        return self

    async def __anext__(self) -> msgspec.Raw:
        if not self._items and not await self.arrival():
            raise StopAsyncIteration
        return self.pop()

    def __len__(self) -> int:
        """How many payloads have arrived and wait."""
        return len(self._items)

    def pop(self) -> msgspec.Raw:
        """The next payload; IndexError when none waits."""
        payload = self._items.popleft()
        self._consumed(len(memoryview(payload)) + ITEM_OVERHEAD_BYTES)
        return payload

    async def next_batch(self) -> list[msgspec.Raw]:
        """All payloads that have arrived, waiting for the first of them; empty only at the end."""
        if not self._items and not await self.arrival():
            return []
        batch = list(self._items)
        self._items.clear()
        size_bytes = len(batch) * ITEM_OVERHEAD_BYTES
        for payload in batch:
            size_bytes += len(memoryview(payload))
        self._consumed(size_bytes)
        return batch

    async def aclose(self) -> None:
        """Tells the callee that nobody listens any more; idempotent."""
        self._close()

    def abandon(self) -> None:
        """Like aclose(), for a destructor, which may run in any thread."""
        if not self._ended:
            self._port.soon(self._close)

    def feed(self, payload: msgspec.Raw) -> None:
        """Called by the connection: an item has arrived."""
        if self._waiter is None:
            payload = payload.copy()  # it may wait for long, and must not keep its whole frame in memory
        self._items.append(payload)
        self._wake()

    def end(self, error: DynamoError | None) -> None:
        """Called by the connection: nothing more will come."""
        if self._ended:
            return
        self._ended = True
        self._error = error
        self._port.forget(self._stream_id)
        if self._unfollow is not None:
            self._unfollow()
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    async def arrival(self) -> bool:
        """Waits until a payload is there; False at the end, raises if that was a failure."""
        while not self._items:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return False
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return True

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _consumed(self, size_bytes: int) -> None:
        self._consumed_bytes += size_bytes
        if self._consumed_bytes * 2 >= WINDOW_BYTES and not self._ended:
            self._port.grant(self._stream_id, self._consumed_bytes)
            self._consumed_bytes = 0

    def _on_stop(self, context: Context) -> None:
        if context.is_killed():
            self._give_up(RequestCancelledError("the request was cancelled"))
        elif not self._ended:
            self._port.stop(self._stream_id, kill=False)

    def _on_deadline(self) -> None:
        self._give_up(DeadlineExceededError("the request's deadline passed"))

    def _close(self) -> None:
        self._give_up(RequestCancelledError("the caller closed the reply"))

    def _give_up(self, error: DynamoError) -> None:
        if not self._ended:
            self._port.stop(self._stream_id, kill=True)
            self.end(error)
            self._items.clear()
