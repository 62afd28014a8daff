"""The caller's end of a call: a stream of payloads with a credit window."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from dynamo.errors import DeadlineExceededError, DynamoError, RequestCancelledError
from dynamo.runtime.codec import ITEM_OVERHEAD_BYTES
from dynamo.runtime.context import Context
from dynamo.runtime.stage import Deliver

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
    """The payloads of a reply in order, to be iterated over or pushed; raises the DynamoError that ended the call.

    aclose() gives the call up, which kills it at the other end.
    """

    __slots__ = (
        "_consumed_bytes",
        "_context",
        "_deliver",
        "_ended",
        "_error",
        "_items",
        "_paused",
        "_port",
        "_stream_id",
        "_timer",
        "_unfollow",
        "_waiter",
    )

    def __init__(self, port: CallerPort, stream_id: int, context: Context) -> None:
        self._port = port
        self._context = context
        self._stream_id = stream_id
        self._items: deque[msgspec.Raw] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._deliver: Deliver[msgspec.Raw] | None = None
        self._paused = False
        self._ended = False
        self._error: Exception | None = None
        self._consumed_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._unfollow: Callable[[], None] | None = None

    def follow(self) -> None:
        """Ends with the context, which may have ended already; to be called when the call is on its way."""
        remaining_s = self._context.remaining_s()
        if remaining_s is not None:
            self._timer = asyncio.get_running_loop().call_later(remaining_s, self._on_deadline)
        self._unfollow = self._context.on_stop(self._on_stop)
        if self._ended:
            self._stop_following()

    def __aiter__(self) -> "Reply":
        return self

    async def __anext__(self) -> msgspec.Raw:
        while not self._items:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            await self._signal()
        payload = self._items.popleft()
        self._consumed(payload)
        return payload

    async def push_to(self, deliver: Deliver[msgspec.Raw]) -> None:
        """Calls `deliver` with each payload the moment it arrives, until the end or until that returns False.

        Raises what ended the call, or what `deliver` raised. Nothing is delivered while the call's context is paused.
        """
        self._deliver = deliver
        unfollow_flow = self._context.on_flow(self._on_flow)
        if self._ended:  # before anybody has read it: what waits can still be given up
            self._unfollow = self._context.on_stop(self._on_stop)
        try:
            self._push_waiting()
            while self._items or not self._ended:
                await self._signal()
        finally:
            self._deliver = None
            unfollow_flow()
            self._close()
            self._stop_following()
        if self._error is not None:
            raise self._error

    async def aclose(self) -> None:
        """Tells the callee that nobody listens any more; idempotent."""
        self._close()

    def abandon(self) -> None:
        """Like aclose(), for a destructor, which may run in any thread."""
        if not self._ended:
            self._port.soon(self._close)

    def feed(self, payload: msgspec.Raw) -> None:
        """Called by the connection: an item has arrived."""
        if self._deliver is None or self._paused:
            self._keep(payload)
            return
        try:
            wanted = self._deliver(payload)
        except Exception as error:  # noqa: BLE001 - it is raised where the reader waits, not in the connection
            self._break_off(error)
            return
        if wanted:
            self._consumed(payload)
        else:
            self._break_off(None)

    def end(self, error: Exception | None) -> None:
        """Called by the connection: nothing more will come."""
        if self._ended:
            return
        self._ended = True
        self._error = error
        self._port.forget(self._stream_id)
        if self._deliver is None or not self._items:  # else the reader has paused, and may give up the rest
            self._stop_following()
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    async def _signal(self) -> None:
        """Waits for the next _wake()."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _keep(self, payload: msgspec.Raw) -> None:
        if self._waiter is None or self._paused:
            payload = payload.copy()  # it may wait for long, and must not keep its whole frame in memory
        self._items.append(payload)
        if self._deliver is None:
            self._wake()

    def _push_waiting(self) -> None:
        while self._items and not self._paused:
            self.feed(self._items.popleft())

    def _consumed(self, payload: msgspec.Raw) -> None:
        self._consumed_bytes += len(memoryview(payload)) + ITEM_OVERHEAD_BYTES
        if self._consumed_bytes * 2 >= WINDOW_BYTES and not self._ended:
            self._port.grant(self._stream_id, self._consumed_bytes)
            self._consumed_bytes = 0

    def _on_stop(self, context: Context) -> None:
        if context.is_killed():
            self._give_up(RequestCancelledError("the request was cancelled"))
        elif not self._ended:
            self._port.stop(self._stream_id, kill=False)

    def _on_flow(self, context: Context) -> None:
        self._paused = context.is_paused()
        self._push_waiting()
        if self._ended:
            self._wake()

    def _on_deadline(self) -> None:
        self._give_up(DeadlineExceededError("the request's deadline passed"))

    def _close(self) -> None:
        self._give_up(RequestCancelledError("the caller closed the reply"))

    def _give_up(self, error: DynamoError) -> None:
        """Ends the call, unless it has been read to its end."""
        if self._items or not self._ended:
            self._break_off(error)

    def _break_off(self, error: Exception | None) -> None:
        self._items.clear()
        if self._ended:
            self._error = error
            self._wake()
        else:
            self._port.stop(self._stream_id, kill=True)
            self.end(error)

    def _stop_following(self) -> None:
        unfollow, self._unfollow = self._unfollow, None
        if unfollow is not None:
            unfollow()
