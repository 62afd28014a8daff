"""The end of a connection that makes calls."""

import asyncio
from collections.abc import Callable

import msgspec

from dynamo.errors import (
    AuthenticationError,
    ConnectionLostError,
    DrainingError,
    DynamoError,
    OverloadedError,
    ProtocolError,
    RequestTooLargeError,
    UnreachableError,
    WorkerStalledError,
    from_info,
    to_info,
)
from dynamo.runtime.codec import (
    DEFAULT_MAX_FRAME_BYTES,
    FRAME_OVERHEAD_BYTES,
    Call,
    Credit,
    End,
    GoAway,
    Hello,
    Item,
    Message,
    Ping,
    Pong,
    Proof,
    Stop,
    encode_payload,
)
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane.connection import Connection
from dynamo.runtime.request_plane.handshake import Handshake
from dynamo.runtime.request_plane.limits import check_metadata, check_name
from dynamo.runtime.request_plane.reply import WINDOW_BYTES, Reply

_QUIET_BEATS = 2
_BACKLOG_BYTES_MAX = 32 << 20  # what may wait for a worker that reads too slowly, or has stopped to


class CallerConnection(Connection):
    """The end that makes calls."""

    def __init__(self, handshake: Handshake) -> None:
        super().__init__(handshake)
        self._replies: dict[int, Reply] = {}
        self._next_stream_id = 0
        self._draining = False
        self._stalled = False
        self._introduced: asyncio.Future[DynamoError | None] = self._loop.create_future()  # with what went wrong

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._draining and not self._stalled

    @property
    def quiet(self) -> bool:
        return self._silent_beats > _QUIET_BEATS and self._transport is not None

    @property
    def stalled(self) -> bool:
        return self._stalled and self._transport is not None

    @property
    def lost(self) -> bool:
        return self._transport is None

    async def introduce(self) -> None:
        """Waits until calls may be made; UnreachableError when the two ends do not trust each other."""
        if not self._handshake.complete and (error := await self._introduced) is not None:
            raise UnreachableError(error.message) from error

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._fail_all(ConnectionLostError(f"the connection to the worker was lost{f': {exc}' if exc else ''}"))

    def call(self, endpoint: str, payload: bytes, context: Context) -> Reply:
        request_id = context.id()
        check_name(request_id)
        size_bytes = len(payload) + len(request_id.encode())
        if context.metadata or context.traceparent is not None:
            size_bytes += _checked_size(context)
        if size_bytes > DEFAULT_MAX_FRAME_BYTES - FRAME_OVERHEAD_BYTES:
            raise RequestTooLargeError(f"a request of {size_bytes} bytes does not fit into a frame")
        stream_id = self._next_stream_id = self._next_stream_id + 1
        reply = Reply(self, stream_id, context)
        if (refusal := self._refusal()) is not None:
            reply.end(refusal)
            return reply
        self._replies[stream_id] = reply
        call = Call(
            stream_id,
            endpoint,
            request_id,
            WINDOW_BYTES,
            context.remaining_s(),
            context.traceparent,
            context.metadata,
            msgspec.Raw(payload),
        )
        self.post(call, size_bytes)
        reply.follow()
        return reply

    def retire(self) -> None:
        self._draining = True
        self._close_when_idle()

    def beat(self, silence_max_s: float) -> int:
        if self._silent_beats == 0:  # else the worker still owes the answer to the last one
            self.post(Ping(silence_max_s))
        self._silent_beats += 1
        return self._silent_beats - 1

    def judge(self, beats_max: int) -> None:
        if self._silent_beats <= beats_max or self._stalled or self._transport is None:
            return
        self._stalled = True
        for stream_id in self._replies:
            self.stop(stream_id, kill=True)  # it reads that when it comes back to life
        self._fail_all(WorkerStalledError("the worker gives no sign of life"))

    def on_message(self, message: Message) -> None:
        if type(message) is Item:
            if (reply := self._replies.get(message.stream_id)) is not None:
                reply.feed(message.payload)
        elif type(message) is End:
            if (reply := self._replies.get(message.stream_id)) is not None:
                reply.end(None if message.error is None else from_info(message.error))
        elif type(message) is Pong:
            pass  # that it came is all that it says
        elif type(message) is Hello or type(message) is Proof:
            if (answer := self._handshake.receive(message)) is not None:
                self._say(answer)
            if self._handshake.complete:
                self._end_introduction(None)
        elif type(message) is GoAway:
            if message.error is not None:
                self._fail_all(from_info(message.error))
            self.retire()
        else:
            raise ProtocolError(f"a worker must not send {type(message).__name__}")

    def grant(self, stream_id: int, size_bytes: int) -> None:
        self.post(Credit(stream_id, size_bytes))

    def stop(self, stream_id: int, *, kill: bool) -> None:
        self.post(Stop(stream_id, kill))

    def forget(self, stream_id: int) -> None:
        self._replies.pop(stream_id, None)
        if self._draining:
            self._close_when_idle()

    def soon(self, callback: Callable[[], None]) -> None:
        """Calls back in the event loop, from any thread; never when the loop is gone."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)

    def _refusal(self) -> DynamoError | None:
        """Why no call can be made now."""
        if self._transport is None:
            return UnreachableError("the connection to the worker was lost before")
        if self._draining:
            return DrainingError("the worker is shutting down")
        if self._stalled:
            return UnreachableError("the worker gives no sign of life")
        if not self.writable.is_set() and self._transport.get_write_buffer_size() > _BACKLOG_BYTES_MAX:
            return OverloadedError("the worker does not take its requests")
        return None

    def _on_sign_of_life(self) -> None:
        super()._on_sign_of_life()
        self._stalled = False

    def _close_when_idle(self) -> None:
        if not self._replies:
            self.hang_up()

    def _refuse(self, error: DynamoError) -> None:
        super()._refuse(error)
        self._fail_all(error)

    def _end_introduction(self, error: DynamoError | None) -> None:
        if not self._introduced.done():
            self._introduced.set_result(error)

    def _fail_all(self, error: DynamoError) -> None:
        if isinstance(error, AuthenticationError):  # it is not who has made the request that is not trusted
            error = UnreachableError(error.message)
        self._end_introduction(error)
        info = to_info(error)
        for reply in tuple(self._replies.values()):
            reply.end(from_info(info))  # each an error of its own: raising one adds to its traceback


def _checked_size(context: Context) -> int:
    """How much of a frame the context takes.

    Raises RequestTooLargeError, ValueError for what would spoil the frame for all who share it.
    """
    head = msgspec.convert((context.traceparent, context.metadata), tuple[str | None, dict[str, str]])
    check_metadata(context.metadata)
    return len(encode_payload(head))
