"""One client's connection at the service."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import cast

from dynamo.errors import DynamoError, InternalError, to_info
from dynamo.kvbm.frames import frame, request_reader
from dynamo.kvbm.socket_path import check_peer
from dynamo.protocols.kvbm import Refused, Reply, Request

logger = logging.getLogger(__name__)

UNREAD_BYTES_MAX = 8 << 20  # that wait for a client; one that reads nothing of them is cut off
FIRST_WORD_S = 10.0  # within which a client has said what it wants, all of it

OnMade = Callable[["Connection"], None]
OnRequest = Callable[["Connection", Request], None]
OnClosed = Callable[["Connection"], None]


class Connection(asyncio.Protocol):
    """Hands on what comes, frame by frame and at once, so nothing queues up on the way in."""

    def __init__(self, on_made: OnMade, on_request: OnRequest, on_closed: OnClosed) -> None:
        """`on_made` and `on_request` may raise a DynamoError, which ends the connection and no other."""
        self.reads = True  # whether the client keeps up
        self.on_reads: Callable[[], None] | None = None  # when it does again
        self._reader = request_reader()
        self._on_made = on_made
        self._on_request = on_request
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._silence: asyncio.TimerHandle | None = None

    def send(self, reply: Reply) -> None:
        """Nothing, to a client that is gone."""
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(frame(reply))
        if self._transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            logger.warning("a client of the block manager does not read what it is told: cut off")
            self._transport.abort()

    def send_with(self, reply: Reply, fd: int) -> None:
        """The first reply, with a file descriptor. Raises OSError when the client does not take it."""
        data = frame(reply)
        with self._raw_socket() as sock:
            if socket.send_fds(sock, [data], [fd]) != len(data):
                raise BlockingIOError("it does not read")

    def _raw_socket(self) -> socket.socket:
        """What transports do not let one do; to be closed at once, the connection stays."""
        assert self._transport is not None
        return socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno()))

    def refuse(self, error: DynamoError) -> None:
        """Says why, and closes."""
        info = to_info(error)
        self.send(Refused(info.code, info.message))
        self.close()

    def close(self) -> None:
        """After what was sent. Idempotent."""
        if self._transport is not None:
            self._transport.close()

    # As asyncio calls it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._silence = asyncio.get_running_loop().call_later(FIRST_WORD_S, self.close)
        try:
            with self._raw_socket() as sock:
                check_peer(sock)
            self._on_made(self)
        except DynamoError as error:
            logger.warning("a connection is refused: %s", error)
            self.refuse(error)

    def data_received(self, data: bytes) -> None:
        try:
            for request in self._reader.feed(data):
                if self._transport is None or self._transport.is_closing():
                    return
                self._end_silence()
                self._on_request(self, request)
        except DynamoError as error:
            logger.warning("a client of the block manager is refused: %s", error)
            self.refuse(error)
        except OSError as error:
            logger.warning("a client of the block manager is lost: %s", error)
            self.close()
        except Exception:  # one client's, and not the others'
            logger.exception("a defect in the block manager")
            self.refuse(InternalError("a defect in the block manager; its log says more"))

    def pause_writing(self) -> None:
        self.reads = False

    def resume_writing(self) -> None:
        self.reads = True
        if self.on_reads is not None:
            self.on_reads()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_silence()
        self._transport = None
        self._on_closed(self)

    def _end_silence(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
