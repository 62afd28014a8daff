"""The end of a connection that answers calls."""

import asyncio
import logging
import math
from collections.abc import Callable

from dynamo.errors import DynamoError, OverloadedError, ProtocolError, from_info, to_info
from dynamo.runtime.codec import (
    Call,
    Credit,
    End,
    GoAway,
    Message,
    Ping,
    Pong,
    Stop,
)
from dynamo.runtime.request_plane import limits
from dynamo.runtime.request_plane.call import Dispatcher, ServedCall
from dynamo.runtime.request_plane.connection import READ_FIRST_S, Connection
from dynamo.runtime.request_plane.handshake import Handshake

logger = logging.getLogger(__name__)


class CalleeConnection(Connection):
    """The end that answers calls."""

    def __init__(self, dispatch: Dispatcher, handshake: Handshake, admit: Callable[["CalleeConnection"], bool]) -> None:
        """`admit` is asked once the connection is made: False ends it."""
        super().__init__(handshake)
        self._dispatch = dispatch
        self._admit = admit
        self._calls: dict[int, ServedCall] = {}
        self._silence = self._loop.call_later(limits.HANDSHAKE_TIMEOUT_S, self._on_silence)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._closing = self._closing or not self._admit(self)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._silence.cancel()
        for call in tuple(self._calls.values()):
            call.kill()

    def data_received(self, data: bytes) -> None:
        transport = None if self.writable.is_set() else self._transport
        if transport is not None and transport.get_write_buffer_size() > limits.UNREAD_BYTES_MAX:
            logger.warning("closing a connection: the caller does not read the answers to what it asks for")
            transport.abort()
        else:
            super().data_received(data)

    def on_message(self, message: Message) -> None:
        if not self._handshake.complete:
            self._introduce(message)
        elif type(message) is Call:
            self._serve(message)
        elif type(message) is Credit:
            if (call := self._calls.get(message.stream_id)) is not None:
                call.grant(message.size_bytes)
        elif type(message) is Stop:
            if (call := self._calls.get(message.stream_id)) is not None:
                call.stop(kill=message.kill)
        elif type(message) is Ping:
            self.post(Pong())
            self._expect_another(message.silence_max_s)
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

    def _introduce(self, message: Message) -> None:
        if type(message) is GoAway and message.error is not None:
            raise from_info(message.error)  # it is the caller who trusts nobody here
        if (answer := self._handshake.receive(message)) is not None:
            self._say(answer)
        if self._handshake.complete:
            self._silence.cancel()

    def _on_silence(self) -> None:
        self._refuse(ProtocolError("the caller did not introduce itself"))
        self.hang_up()  # also if it has not even been connected

    def _expect_another(self, silence_max_s: float) -> None:
        """Gives the caller that long for its next ping."""
        self._silence.cancel()
        if math.isfinite(silence_max_s):
            self._silence = self._loop.call_later(max(0.0, silence_max_s), self._judge)

    def _judge(self) -> None:
        """The caller has been silent, unless its ping waits to be read because this process was held up itself."""
        self._silence = self._loop.call_later(READ_FIRST_S, self._give_up)

    def _give_up(self) -> None:
        """Frees what the caller has asked for: it is stopped, or cut off. Should it come back, it can connect anew."""
        if self._transport is not None:
            logger.warning("a caller with %d requests gives no sign of life", len(self._calls))
            self._transport.abort()

    def _serve(self, call: Call) -> None:
        if call.stream_id in self._calls:
            raise ProtocolError(f"stream {call.stream_id} is already open")
        try:
            limits.check_call(call)
            if len(self._calls) >= limits.STREAMS_MAX:
                raise OverloadedError("there are too many calls on this connection")
            handler = self._dispatch(call.endpoint)
        except DynamoError as error:
            self.post(End(call.stream_id, to_info(error)))
            return
        served = ServedCall(self, call, self._forget)
        self._calls[call.stream_id] = served
        served.start(handler, call.payload)

    def _forget(self, stream_id: int) -> None:
        self._calls.pop(stream_id, None)
