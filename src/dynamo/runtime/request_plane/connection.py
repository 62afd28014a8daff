"""The protocol spoken on a connection, for both of its ends; any asyncio transport will do."""

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable
from typing import cast

import msgspec

from dynamo.errors import (
    AuthenticationError,
    ConnectionLostError,
    DrainingError,
    DynamoError,
    ProtocolError,
    RequestTooLargeError,
    from_info,
    to_info,
)
from dynamo.runtime.codec import (
    DEFAULT_MAX_FRAME_BYTES,
    FRAME_OVERHEAD_BYTES,
    PROTOCOL_VERSION,
    Call,
    Credit,
    End,
    FrameReader,
    GoAway,
    Hello,
    Item,
    Message,
    Stop,
    encode_frame,
    encode_payload,
)
from dynamo.runtime.context import Context
from dynamo.runtime.request_plane.call import Dispatcher, ServedCall
from dynamo.runtime.request_plane.reply import WINDOW_BYTES, Reply

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 5.0  # how long a peer that does not read may delay the end of its connection
HANDSHAKE_TIMEOUT_S = 5.0
_FRAME_TARGET_BYTES = 256 << 10  # a frame that has grown to this leaves before the turn ends


class Connection(asyncio.Protocol):
    """What both ends share: messages posted in one turn of the event loop leave in one frame."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._outbox: list[Message] = []
        self._outbox_bytes = 0
        self._closing = False
        self.writable = asyncio.Event()  # cleared while the socket's buffer is full
        self.writable.set()
        self.closed = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        made = cast("asyncio.Transport", transport)
        if self._closing:
            made.abort()
        else:
            self._transport = made

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._outbox.clear()
        self.writable.set()
        if not self.closed.done():
            self.closed.set_result(None)

    def raw_socket(self) -> socket.socket | None:
        """The socket under the transport, where there is one."""
        return None if self._transport is None else self._transport.get_extra_info("socket")

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def post(self, message: Message, size_bytes: int = 0) -> None:
        """Queues a message for this turn's frame; does nothing once the connection is lost."""
        if self._transport is None:
            return
        if size_bytes >= _FRAME_TARGET_BYTES:
            self._flush()  # as large as a frame may be, perhaps: it gets one to itself
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(message)
        self._outbox_bytes += size_bytes
        if self._outbox_bytes >= _FRAME_TARGET_BYTES:
            self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._reader.feed(data):
                self.on_message(message)
        except DynamoError as error:
            self._refuse(error)

    def on_message(self, message: Message) -> None:
        raise NotImplementedError

    def hang_up(self) -> None:
        """Closes as soon as what is queued has been sent; at once when the connection is yet to be made."""
        self._closing = True
        if self._transport is not None:
            self._flush()
            self._transport.close()

    async def close(self) -> None:
        """Sends what is queued and closes; idempotent."""
        self.hang_up()
        if self._transport is not None:
            await asyncio.wait([self.closed], timeout=CLOSE_TIMEOUT_S)
        if self._transport is not None:
            self._transport.abort()
            await self.closed

    def _flush(self) -> None:
        if self._outbox and self._transport is not None:
            frame = encode_frame(self._outbox)
            self._outbox = []
            self._outbox_bytes = 0
            self._transport.write(frame)

    def _refuse(self, error: DynamoError) -> None:
        """Ends the connection because of what the peer sent."""
        if self._transport is not None:
            logger.warning("closing a connection: %s", error)
            self.post(GoAway(to_info(error)))
            self.hang_up()


class CallerConnection(Connection):
    """The end that makes calls."""

    def __init__(self, secret: str) -> None:
        super().__init__()
        self._replies: dict[int, Reply] = {}
        self._next_stream_id = 0
        self._draining = False
        self._secret = secret

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._draining

    @property
    def lost(self) -> bool:
        return self._transport is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.post(Hello(PROTOCOL_VERSION, self._secret))
        self._flush()  # alone in its frame, which has a limit of its own

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._fail_all(ConnectionLostError(f"the connection to the worker was lost{f': {exc}' if exc else ''}"))

    def call(self, endpoint: str, payload: bytes, context: Context) -> Reply:
        size_bytes = len(payload)
        if context.metadata or context.traceparent is not None:
            size_bytes += _checked_size(context)
        if size_bytes > DEFAULT_MAX_FRAME_BYTES - FRAME_OVERHEAD_BYTES:
            raise RequestTooLargeError(f"a request of {size_bytes} bytes does not fit into a frame")
        stream_id = self._next_stream_id = self._next_stream_id + 1
        reply = Reply(self, stream_id)
        if not self.usable:
            reply.end(self._refusal())
            return reply
        self._replies[stream_id] = reply
        call = Call(
            stream_id,
            endpoint,
            context.id(),
            WINDOW_BYTES,
            context.remaining_s(),
            context.traceparent,
            context.metadata,
            msgspec.Raw(payload),
        )
        self.post(call, size_bytes)
        reply.follow(context)
        return reply

    def retire(self) -> None:
        self._draining = True
        self._close_when_idle()

    def on_message(self, message: Message) -> None:
        if type(message) is Item:
            if (reply := self._replies.get(message.stream_id)) is not None:
                reply.feed(message.payload)
        elif type(message) is End:
            if (reply := self._replies.get(message.stream_id)) is not None:
                reply.end(None if message.error is None else from_info(message.error))
        elif type(message) is Hello:
            _check_version(message)
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

    def _refusal(self) -> DynamoError:
        if self._transport is None:
            return ConnectionLostError("the connection to the worker was lost")
        return DrainingError("the worker is shutting down")

    def _close_when_idle(self) -> None:
        if not self._replies:
            self.hang_up()

    def _refuse(self, error: DynamoError) -> None:
        super()._refuse(error)
        self._fail_all(error)

    def _fail_all(self, error: DynamoError) -> None:
        for reply in tuple(self._replies.values()):
            reply.end(error)


class CalleeConnection(Connection):
    """The end that answers calls."""

    def __init__(self, dispatch: Dispatcher, secret: str) -> None:
        super().__init__()
        self._dispatch = dispatch
        self._secret = secret
        self._calls: dict[int, ServedCall] = {}
        self._greeted = False
        self._silence = self._loop.call_later(HANDSHAKE_TIMEOUT_S, self._on_silence)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.post(Hello(PROTOCOL_VERSION))
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._silence.cancel()
        for call in tuple(self._calls.values()):
            call.kill()

    def on_message(self, message: Message) -> None:
        if not self._greeted:
            self._greet(message)
        elif type(message) is Call:
            self._serve(message)
        elif type(message) is Credit:
            if (call := self._calls.get(message.stream_id)) is not None:
                call.grant(message.size_bytes)
        elif type(message) is Stop:
            if (call := self._calls.get(message.stream_id)) is not None:
                call.stop(kill=message.kill)
        elif type(message) is GoAway:
            logger.warning("a caller went away: %s", message.error.message if message.error else "no reason given")
        else:
            raise ProtocolError(f"a caller must not send {type(message).__name__}")

    def go_away(self) -> None:
        """Asks the caller to make no new calls, and to hang up when those under way have ended.

        Calls that were sent before the caller hears of it are answered.
        """
        self.post(GoAway())

    def calls(self) -> list[ServedCall]:
        return list(self._calls.values())

    def _greet(self, message: Message) -> None:
        if type(message) is not Hello:
            raise ProtocolError("the first message must be a greeting")
        _check_version(message)
        if not secrets.compare_digest(message.secret.encode(), self._secret.encode()):
            raise AuthenticationError("the caller does not know this instance's secret")
        self._greeted = True
        self._silence.cancel()

    def _on_silence(self) -> None:
        self._refuse(ProtocolError("the caller did not introduce itself"))

    def _serve(self, call: Call) -> None:
        if call.stream_id in self._calls:
            raise ProtocolError(f"stream {call.stream_id} is already open")
        try:
            handler = self._dispatch(call.endpoint)
        except DynamoError as error:
            self.post(End(call.stream_id, to_info(error)))
            return
        served = ServedCall(self, call, self._forget)
        self._calls[call.stream_id] = served
        served.start(handler, call.payload)

    def _forget(self, stream_id: int) -> None:
        self._calls.pop(stream_id, None)


def _checked_size(context: Context) -> int:
    """How much of a frame the context takes; ValueError for what would spoil the frame for all who share it."""
    head = msgspec.convert((context.traceparent, context.metadata), tuple[str | None, dict[str, str]])
    return len(encode_payload(head))


def _check_version(hello: Hello) -> None:
    if hello.version != PROTOCOL_VERSION:
        raise ProtocolError(f"the peer speaks version {hello.version} of the protocol, this side {PROTOCOL_VERSION}")
