"""What both ends of a connection have in common; any asyncio transport will do."""

import asyncio
import functools
import logging
import socket
from typing import cast

from dynamo.errors import AuthenticationError, DynamoError, to_info
from dynamo.runtime.codec import FrameReader, GoAway, Message, encode_frame
from dynamo.runtime.request_plane.handshake import Handshake

logger = logging.getLogger(__name__)

READ_FIRST_S = 0.05  # before a silence is judged: what has come while this process was held up is read meanwhile
CLOSE_TIMEOUT_S = 5.0  # how long a peer that does not read may delay the end of its connection
_FRAME_TARGET_BYTES = 256 << 10  # a frame that has grown to this leaves before the turn ends
_FRAME_TARGET_MESSAGES = 32  # likewise: the peer starts on them while we prepare more


class Connection(asyncio.Protocol):
    """Messages posted in one turn of the event loop share frames. `caller` and `callee` are its two ends."""

    def __init__(self, handshake: Handshake) -> None:
        self._loop = asyncio.get_running_loop()
        self._handshake = handshake
        self._reader = FrameReader(first_frames=handshake.frames)
        self._transport: asyncio.Transport | None = None
        self._outbox: list[Message] = []
        self._outbox_bytes = 0
        self._closing = False
        self._silent_beats = 0  # times that the silence was noted since something has come
        self.writable = asyncio.Event()  # cleared while the socket's buffer is full
        self.writable.set()
        self.closed = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        made = cast("asyncio.Transport", transport)
        if self._closing:
            made.abort()
        else:
            self._transport = made
            self._say(self._handshake.greeting())

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
        if self._outbox_bytes >= _FRAME_TARGET_BYTES or len(self._outbox) >= _FRAME_TARGET_MESSAGES:
            self._flush()

    def data_received(self, data: bytes) -> None:
        if self._silent_beats:
            self._on_sign_of_life()
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

    def _on_sign_of_life(self) -> None:
        self._silent_beats = 0

    def _say(self, message: Message) -> None:
        """Sends a part of the handshake, alone in its frame, which has a limit of its own."""
        self.post(message)
        self._flush()

    def _flush(self) -> None:
        if self._outbox and self._transport is not None:
            frame = encode_frame(self._outbox)
            self._outbox = []
            self._outbox_bytes = 0
            self._transport.write(frame)

    def _refuse(self, error: DynamoError) -> None:
        """Ends the connection because of what the peer sent."""
        if self._transport is not None:
            if isinstance(error, AuthenticationError):
                _warn_of_stranger(self._peer(), error.message)
            else:
                logger.warning("closing a connection: %s", error)
            self.post(GoAway(to_info(error)))
            self.hang_up()

    def _peer(self) -> str:
        """Where the other end is."""
        name = None if self._transport is None else self._transport.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) and name else "this host"


@functools.lru_cache(maxsize=64)  # once: who was set up wrongly tries again and again
def _warn_of_stranger(peer: str, reason: str) -> None:
    logger.warning("closing connections with %s: %s", peer, reason)
