"""Reads and writes over TCP: the bytes go from the memory of one side into that of the other, with no copy between.

A connection carries one request at a time: the caller says what it wants and where, the other side agrees or refuses,
and then come the bytes. Both ends use a blocking socket in a thread; the sockets' own timeouts let them look up.
"""

import ctypes
import errno
import logging
import os
import secrets
import socket
import struct
import threading
import time
from array import array
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec

from dynamo.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    ErrorInfo,
    InvalidRequestError,
    RequestCancelledError,
    from_info,
    to_info,
)
from dynamo.runtime.listening_socket import bind
from dynamo.transfer.acceptor import Acceptor, shut
from dynamo.transfer.blocks import MAX_BLOCKS
from dynamo.transfer.introduction import admit, introduce
from dynamo.transfer.job import Control, Job, RegionKey
from dynamo.transfer.metadata import AgentMetadata, RegionInfo, TcpOffer
from dynamo.transfer.vector import IOV_MAX, Vector

logger = logging.getLogger(__name__)

T = TypeVar("T")

Located = tuple[Vector, object]
LANES = 2
_TICK_S = 0.1  # how long a thread may wait before it looks whether it is still wanted
_SERVING_TICK_S = 1.0  # likewise, where there may be a thousand of them, most of which wait for a request
_CONNECT_TIMEOUT_S = 5.0
_FINISH_TIMEOUT_S = 1.0
_MESSAGE_BYTES_MAX = 32 * MAX_BLOCKS
_LENGTH = struct.Struct("<I")
_TIMEVAL = struct.Struct("ll")


class _Request(msgspec.Struct, array_like=True, frozen=True):
    """What follows the handshake, again and again."""

    write: bool
    keys: tuple[RegionKey, ...]
    vector: bytes  # of the target's memory
    timeout_s: float  # how long whoever asks waits for the end


class TcpTarget:
    """As Target: serves connections, each in a thread of its own."""

    def __init__(
        self,
        locate: Callable[[tuple[RegionKey, ...], bytes, bool], Located],
        host: str,
        secret: bytes | None = None,
    ) -> None:
        """`locate` turns keys and vector of a request into the target's own memory, and what keeps it there.

        It raises InvalidRequestError for what is not registered. `secret` is the deployment's. Raises ConfigError when
        `host` cannot be bound.
        """
        self._locate = locate
        self._secret = secret
        listening = bind(host, 0)
        self._offer = TcpOffer(
            host=host,
            port=listening.getsockname()[1],
            secret=secrets.token_bytes(16),
            proof=secret is not None,
        )
        self._acceptor = Acceptor(listening, self._serve, "transfer-tcp")

    def offer(self, metadata: AgentMetadata) -> None:
        metadata.tcp = self._offer

    def set_key(self, region_id: int, key: int) -> None:
        """Each request is checked when it comes."""

    def close(self) -> None:
        """Callers see ConnectionLostError. Idempotent."""
        self._acceptor.close()

    def _serve(self, sock: socket.socket) -> None:
        check = Control(deadline_s=time.monotonic() + _CONNECT_TIMEOUT_S).check
        stream = _Stream(sock, check, tick_s=_SERVING_TICK_S)
        try:
            admit(stream, self._offer, self._secret)
            while True:
                stream.check = self._still_serving
                request = stream.receive(_Request)
                stream.check = Control(
                    deadline_s=time.monotonic() + request.timeout_s, cancelled=self._acceptor.closed
                ).check
                self._answer(stream, request)
        except (ConnectionLostError, DeadlineExceededError, RequestCancelledError, msgspec.DecodeError) as error:
            logger.debug("a transfer connection has ended: %s", error)

    def _answer(self, stream: "_Stream", request: _Request) -> None:
        try:
            vector, keep = self._locate(request.keys, request.vector, request.write)
        except InvalidRequestError as error:
            stream.send(to_info(error))
            return
        stream.send(None)
        if request.write:
            stream.read_into(vector)
            stream.send(None)
        else:
            stream.write_from(vector)
        del keep

    def _still_serving(self) -> None:
        if self._acceptor.closed.is_set():
            raise ConnectionLostError("the agent is closing")


class TcpLink:
    """As Link: a connection for each job under way, kept for the next one."""

    name = "tcp"
    lanes = LANES
    inline_bytes_max = 0

    def __init__(self, offer: TcpOffer, secret: bytes | None = None) -> None:
        """`secret` is the deployment's. Raises ConnectionLostError when nobody is there, or a stranger."""
        self._offer = offer
        self._secret = secret
        self._lock = threading.Lock()
        self._idle: list[_Stream] = []
        self._open: set[_Stream] = set()
        self._closed = False
        self._put_back(self._connect())

    def reaches(self, regions: Iterable[RegionInfo]) -> bool:
        return True

    def ready(self, regions: Iterable[RegionInfo]) -> bool:
        return True

    def copy(self, job: Job) -> None:
        stream = self._take()
        stream.check = job.control.check
        try:
            self._copy(stream, job)
        except InvalidRequestError:
            self._put_back(stream)  # refused before any byte was sent
            raise
        except BaseException:
            if job.write:
                stream.finish()  # or what is on its way would be written later than what comes after this
            self._discard(stream)
            raise
        self._put_back(stream)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = self._open.difference(idle)
        for stream in idle:
            self._discard(stream)
        for stream in busy:
            stream.shut()  # their threads close them

    def _copy(self, stream: "_Stream", job: Job) -> None:
        size_bytes = job.local.size_bytes
        timeout_s = job.control.deadline_s - time.monotonic()
        stream.send(_Request(job.write, job.keys, job.remote.tobytes(), timeout_s))
        stream.receive_agreement()
        if job.write:
            stream.write_from(job.local)
            stream.receive_agreement()
        else:
            stream.read_into(job.local)
        job.done_bytes = size_bytes

    def _connect(self) -> "_Stream":
        try:
            sock = socket.create_connection((self._offer.host, self._offer.port), _CONNECT_TIMEOUT_S)
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be one
            raise ConnectionLostError(f"tcp: cannot connect to the peer: {error}") from error
        stream = _Stream(sock, Control(deadline_s=time.monotonic() + _CONNECT_TIMEOUT_S).check)
        with self._lock:
            closed = self._closed  # meanwhile
            self._open.add(stream)
        try:
            if closed:
                raise ConnectionLostError("the link was closed")
            introduce(stream, self._offer, self._secret)
        except DeadlineExceededError as error:
            self._discard(stream)
            raise ConnectionLostError("tcp: the peer does not introduce itself") from error
        except BaseException:
            self._discard(stream)
            raise
        return stream

    def _take(self) -> "_Stream":
        with self._lock:
            if self._closed:
                raise ConnectionLostError("the link was closed")
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _put_back(self, stream: "_Stream") -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(stream)
                return
        self._discard(stream)

    def _discard(self, stream: "_Stream") -> None:
        with self._lock:
            self._open.discard(stream)
        stream.close()


class _Stream:
    """A blocking socket that looks up at times; for one thread."""

    def __init__(self, sock: socket.socket, check: Callable[[], None], *, tick_s: float = _TICK_S) -> None:
        """`check`, which is asked this often, raises when nobody waits for this any more."""
        self.check = check
        self._sock = sock
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tick = _TIMEVAL.pack(*divmod(int(tick_s * 1_000_000), 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)
        _detect_dead_peer(sock)

    def send(self, message: Any) -> None:
        data = msgspec.msgpack.encode(message)
        self.send_exactly(_LENGTH.pack(len(data)) + data)

    def receive(self, kind: type[T]) -> T:
        (size_bytes,) = _LENGTH.unpack(self.receive_exactly(_LENGTH.size))
        if size_bytes > _MESSAGE_BYTES_MAX:
            raise ConnectionLostError(f"tcp: a message of {size_bytes} bytes is too large")
        return msgspec.msgpack.decode(self.receive_exactly(size_bytes), type=kind)

    def receive_agreement(self) -> None:
        """Raises the error that the other side has instead."""
        try:
            refusal = self.receive(ErrorInfo | None)  # type: ignore[arg-type]
        except msgspec.DecodeError as error:
            raise ConnectionLostError("tcp: the peer does not speak our protocol") from error
        if refusal is not None:
            raise from_info(refusal)

    def send_exactly(self, data: bytes) -> None:
        buffer = ctypes.create_string_buffer(data, len(data))
        self.write_from(Vector(array("Q", [ctypes.addressof(buffer), len(data)])))

    def receive_exactly(self, size_bytes: int) -> bytes:
        buffer = ctypes.create_string_buffer(size_bytes)
        self.read_into(Vector(array("Q", [ctypes.addressof(buffer), size_bytes])))
        return buffer.raw

    def read_into(self, vector: Vector) -> None:
        self._move(_readv, vector)

    def write_from(self, vector: Vector) -> None:
        self._move(_writev, vector)

    def shut(self) -> None:
        """Whoever waits for it sees its end."""
        shut(self._sock)

    def finish(self) -> None:
        """Sends no more. Returns when the other side has seen so, and does no more for us; or takes too long."""
        self.check = Control(deadline_s=time.monotonic() + _FINISH_TIMEOUT_S).check
        shut(self._sock, socket.SHUT_WR)
        try:
            while True:
                self.receive_exactly(1)
        except (ConnectionLostError, DeadlineExceededError) as error:
            logger.debug("a write was given up: %s", error)

    def close(self) -> None:
        self._sock.close()

    def _move(self, call: Any, vector: Vector) -> None:
        while len(vector):
            self.check()
            moved = call(self._sock.fileno(), vector.pointer, min(len(vector), IOV_MAX))
            if moved > 0:
                vector.advance(moved)
            elif moved == 0:
                raise ConnectionLostError("tcp: the peer has closed the connection")
            elif (number := ctypes.get_errno()) not in (errno.EAGAIN, errno.EINTR):
                raise ConnectionLostError(f"tcp: {os.strerror(number)}")


def _detect_dead_peer(sock: socket.socket) -> None:
    """Lets the kernel find out within seconds that a host has vanished without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5_000)


_libc = ctypes.CDLL(None, use_errno=True)
_readv, _writev = _libc.readv, _libc.writev
for _function in (_readv, _writev):
    _function.restype = ctypes.c_ssize_t
    _function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
