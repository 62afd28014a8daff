"""The callee's end of a call: runs the handler and sends what it yields, as fast as the caller reads."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

import msgspec

from dynamo.errors import DeadlineExceededError, DynamoError, to_info
from dynamo.runtime.codec import ITEM_OVERHEAD_BYTES, Call, End, Item, Message
from dynamo.runtime.context import Context

logger = logging.getLogger(__name__)

# Answers one call with encoded payloads.
PayloadHandler = Callable[[msgspec.Raw, Context], AsyncGenerator[bytes, None]]
# Finds the handler of an endpoint; raises NotFoundError.
Dispatcher = Callable[[str], PayloadHandler]


class CalleePort(Protocol):
    """What a ServedCall needs of its connection."""

    writable: asyncio.Event

    def post(self, message: Message, size_bytes: int = 0) -> None: ...


class ServedCall:
    """One call being answered in a task of its own."""

    __slots__ = (
        "_credit_bytes",
        "_credit_waiter",
        "_ended",
        "_killed",
        "_on_done",
        "_port",
        "_stream_id",
        "_timer",
        "context",
        "endpoint",
        "task",
    )

    def __init__(self, port: CalleePort, call: Call, on_done: Callable[[int], None]) -> None:
        loop = asyncio.get_running_loop()
        self._port = port
        self._stream_id = call.stream_id
        self._credit_bytes = call.window_bytes
        self._credit_waiter: asyncio.Future[None] | None = None
        self._on_done = on_done
        self._ended = False  # the caller was told, or does not listen
        self._killed = False
        self.endpoint = call.endpoint
        self.context = Context(
            call.request_id,
            call.metadata,
            deadline_s=None if call.timeout_s is None else loop.time() + call.timeout_s,
            traceparent=call.traceparent,
        )
        self._timer = None if call.timeout_s is None else loop.call_later(call.timeout_s, self._on_deadline)
        self.task: asyncio.Task[None] | None = None

    def start(self, handler: PayloadHandler, payload: msgspec.Raw) -> None:
        self.task = asyncio.create_task(self._run(handler(payload, self.context)))  # who keeps the payload is up to it
        self.task.add_done_callback(self._done)  # not in the task itself: it may be cancelled before it starts

    def grant(self, size_bytes: int) -> None:
        self._credit_bytes += size_bytes
        if self._credit_bytes > 0 and self._credit_waiter is not None and not self._credit_waiter.done():
            self._credit_waiter.set_result(None)

    def stop(self, *, kill: bool) -> None:
        if kill:
            self.kill()
        else:
            self.context.stop_generating()

    def kill(self, reason: DynamoError | None = None) -> None:
        """Cancels the handler, once. The caller is told the reason before that; without one, it does not listen."""
        if self._killed:
            return  # the handler may be cleaning up
        self._killed = True
        if reason is not None:
            self._end(reason)
        self._ended = True
        self.context.kill()
        if self.task is not None:
            self.task.cancel()

    async def _run(self, replies: AsyncGenerator[bytes, None]) -> None:
        error: BaseException | None = None
        try:
            await self._answer(replies)
        except asyncio.CancelledError as cancelled:
            error = cancelled
        except DynamoError as failure:
            error = failure
        except Exception as failure:
            logger.warning("request %s: the handler failed", self.context.id(), exc_info=failure)
            error = failure
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if self._ended:
            return
        self._ended = True
        if error is None:
            self._port.post(End(self._stream_id))
        else:
            info = to_info(error)
            self._port.post(End(self._stream_id, info), len(info.message))

    def _done(self, task: asyncio.Task[None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._on_done(self._stream_id)

    async def _answer(self, replies: AsyncGenerator[bytes, None]) -> None:
        port, stream_id = self._port, self._stream_id
        async with aclosing(replies):
            async for reply in replies:
                size_bytes = len(reply) + ITEM_OVERHEAD_BYTES
                port.post(Item(stream_id, msgspec.Raw(reply)), size_bytes)
                self._credit_bytes -= size_bytes
                if self._credit_bytes <= 0 or not port.writable.is_set():
                    await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        while self._credit_bytes <= 0:
            self._credit_waiter = asyncio.get_running_loop().create_future()
            await self._credit_waiter
        await self._port.writable.wait()

    def _on_deadline(self) -> None:
        self.kill(DeadlineExceededError("the request's deadline passed"))
