"""The protocol spoken on a connection, for both of its ends; any asyncio transport will do."""

import asyncio
import logging
import secrets
import socket
from typing import cast

import msgspec

from dynamo.errors import (
    AuthenticationError,
    ConnectionLostError,
    DrainingError,
    DynamoError,
    ProtocolError,
    from_info,
    to_info,
)
from dynamo.runtime.codec import (
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

_FRAME_TARGET_BYTES = 256 << 10  # a frame that has grown to this leaves before the turn ends


class Connection(asyncio.Protocol):
    """What both ends share: messages posted in one turn of the event loop leave in one frame."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._outbox: list[Message] = []
        self._outbox_bytes = 0
        self.writable = asyncio.Event()  # cleared while the socket's buffer is full
        self.writable.set()
        self.closed = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

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

    async def close(self) -> None:
        """Sends what is queued and closes."""
        if self._transport is not None:
            self._flush()
            self._transport.close()
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
            self._flush()
            self._transport.close()


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

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.post(Hello(PROTOCOL_VERSION, self._secret))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._fail_all(ConnectionLostError(f"the connection to the worker was lost{f': {exc}' if exc else ''}"))

    def call(self, endpoint: str, payload: bytes, context: Context) -> Reply:
        if context.metadata:
            encode_payload(context.metadata)  # an unusable value is this caller's error, not the whole frame's
        stream_id = self._next_stream_id = self._next_stream_id + 1
        reply = Reply(self, stream_id, context)
        if self._transport is None:
            reply.end(ConnectionLostError("the connection to the worker was lost"))
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
        self.post(call, len(payload))
        return reply

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
            self._draining = True
            if message.error is not None:
                self._fail_all(from_info(message.error))
        else:
            raise ProtocolError(f"a worker must not send {type(message).__name__}")

    def grant(self, stream_id: int, size_bytes: int) -> None:
        self.post(Credit(stream_id, size_bytes))

    def stop(self, stream_id: int, *, kill: bool) -> None:
        self.post(Stop(stream_id, kill))

    def forget(self, stream_id: int) -> None:
        self._replies.pop(stream_id, None)

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
        self._draining = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.post(Hello(PROTOCOL_VERSION))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
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
        """Refuses new calls; those under way go on."""
        self._draining = True
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

    def _serve(self, call: Call) -> None:
        if call.stream_id in self._calls:
            raise ProtocolError(f"stream {call.stream_id} is already open")
        try:
            if self._draining:
                raise DrainingError("this worker is shutting down")
            handler = self._dispatch(call.endpoint)
        except DynamoError as error:
            self.post(End(call.stream_id, to_info(error)))
            return
        served = ServedCall(self, call, self._forget)
        self._calls[call.stream_id] = served
        served.start(handler, call.payload)

    def _forget(self, stream_id: int) -> None:
        self._calls.pop(stream_id, None)


def _check_version(hello: Hello) -> None:
    if hello.version != PROTOCOL_VERSION:
        raise ProtocolError(f"the peer speaks version {hello.version} of the protocol, this side {PROTOCOL_VERSION}")
