"""The engine's side of the block manager, without an event loop: its scheduler's questions, its ranks' memory."""

import contextlib
import logging
import os
import select
import socket
import time
from array import array
from collections import deque
from pathlib import Path

from dynamo.errors import ConfigError, ConnectionLostError, DynamoError, ErrorInfo, ProtocolError, from_info
from dynamo.kvbm.frames import frame, reply_reader
from dynamo.kvbm.socket_path import connect
from dynamo.protocols.kvbm import (
    Attach,
    Attached,
    Commit,
    Discard,
    Found,
    Granted,
    LookUp,
    Refused,
    Release,
    Reply,
    Report,
    Request,
)
from dynamo.transfer.memory import view_of
from dynamo.transfer.shared_memory import Mapping, mapped

logger = logging.getLogger(__name__)

_RETRY_S = 1.0
_ATTACH_S = 10.0  # how long a service may take to make a pool
_UNSENT_BYTES_MAX = 16 << 20  # of a service that does not read
_READ_BYTES = 256 << 10


class ServiceClient:
    """An engine's scheduler, as the service knows it. For one thread; no method blocks longer than it is told.

    The connection is made, and made again, by poll() and look_up(). What was granted or found before is void then:
    whoever holds slots or lookups compares `generation`. While there is none, nothing is found and nothing is kept.
    """

    def __init__(self, path: Path, attach: Attach) -> None:
        """Does not connect yet."""
        self.connected = False
        self.generation = 0  # how many connections there have been
        self.pool = ""  # names the memory whose slots are spoken of, see MappedPool.pool
        self._path = path
        self._attach = attach
        self._socket: socket.socket | None = None
        self._reader = reply_reader()
        self._unsent = bytearray()
        self._granted: deque[int] = deque()
        self._answers: dict[int, Found | None] = {}  # by lookup that was not released
        self._next_lookup = 0
        self._next_try_s = 0.0
        self._attach_deadline_s = 0.0
        self._said = ""  # why there is no service

    @property
    def granted(self) -> int:
        """Slots at hand."""
        return len(self._granted)

    def take_slots(self, count: int) -> list[int]:
        """Up to so many slots to fill; each is committed or discarded later."""
        return [self._granted.popleft() for _ in range(min(count, len(self._granted)))]

    def look_up(self, keys: bytes, wait_ms: int) -> int | None:
        """Asks for the blocks of these keys; the question's id. None: there is no service."""
        self._keep_connected()
        if not self.connected:
            return None
        lookup = self._next_lookup
        self._next_lookup += 1
        self._answers[lookup] = None
        self._send(LookUp(lookup, keys, wait_ms))
        return lookup if self.connected else None

    def answer(self, lookup: int) -> Found | None:
        """The latest answer. None: there is none yet, or never will be, see `generation`."""
        return self._answers.get(lookup)

    def poll(self, timeout_s: float = 0.0) -> None:
        """Takes in what the service has said, and returns as soon as there was anything, or after `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        self._keep_connected()
        while self._socket is not None and not self._take_in():
            rest_s = deadline_s - time.monotonic()
            if rest_s <= 0:
                return
            self._wait(rest_s)
            self._flush()

    def release(self, lookups: list[int]) -> None:
        """What these have found is read no more, or not waited for any more."""
        known = [lookup for lookup in lookups if lookup in self._answers]
        for lookup in known:
            del self._answers[lookup]
        if known:
            self._send(Release(known))

    def commit(self, slots: list[int], keys: bytes, names: bytes) -> None:
        """These slots, of this generation, are filled."""
        self._send(Commit(slots, keys, names))

    def discard(self, slots: list[int]) -> None:
        """These slots, of this generation, go back; nobody writes to them any more."""
        self._send(Discard(slots))

    def report(self, report: Report) -> None:
        self._send(report)

    def close(self) -> None:
        """Idempotent."""
        self._let_go()
        self._next_try_s = float("inf")

    def _keep_connected(self) -> None:
        now_s = time.monotonic()
        if self._socket is not None:
            if not self.connected and now_s > self._attach_deadline_s:
                self._lose("it does not answer")
            return
        if now_s < self._next_try_s:
            return
        self._next_try_s = now_s + _RETRY_S
        try:
            self._socket = connect(self._path, 0)
        except ConnectionLostError as error:
            self._say(str(error))
            return
        self._reader = reply_reader()
        self._attach_deadline_s = now_s + _ATTACH_S
        self._unsent += frame(self._attach)
        self._flush()

    def _send(self, message: Request) -> None:
        """Nothing, while there is no connection: what it would speak of is void."""
        if not self.connected:
            return
        self._unsent += frame(message)
        self._flush()
        if len(self._unsent) > _UNSENT_BYTES_MAX:
            self._lose("it does not read")

    def _flush(self) -> None:
        if self._socket is None or not self._unsent:
            return
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError as error:
            self._lose(str(error))

    def _wait(self, timeout_s: float) -> None:
        assert self._socket is not None
        waiting = select.poll()  # select() knows no descriptors over 1023
        waiting.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        waiting.poll(timeout_s * 1000)

    def _take_in(self) -> bool:
        """Whether anything has come."""
        taken = False
        while self._socket is not None:
            try:
                data = self._socket.recv(_READ_BYTES)
                if not data:
                    raise ConnectionLostError("it has closed the connection")
                for reply in self._reader.feed(data):
                    self._on_reply(reply)
            except BlockingIOError:
                break
            except (OSError, DynamoError) as error:
                self._lose(str(error))
            taken = True
        return taken

    def _on_reply(self, reply: Reply) -> None:
        match reply:
            case Found():
                if reply.lookup in self._answers:
                    self._answers[reply.lookup] = reply
            case Granted():
                self._granted += reply.slots
            case Attached():
                self.connected = True
                self.generation += 1
                self.pool = reply.pool
                self._said = ""
                logger.info("connected to the block manager at %s", self._path)
            case Refused():
                raise _refusal(reply)
            case _:
                raise ProtocolError(f"it has sent a {type(reply).__name__}")

    def _lose(self, reason: str) -> None:
        self._let_go()
        self._say(f"the block manager at {self._path} is of no use: {reason}")

    def _let_go(self) -> None:
        self.connected = False
        self._granted.clear()
        self._answers.clear()
        self._unsent.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say(self, problem: str) -> None:
        """Once, until it is another."""
        if problem != self._said:
            self._said = problem
            logger.warning("%s; the engine serves without it, and tries again", problem)


class MappedPool:
    """A pool's memory in a rank's process, and the connection by which the service knows that somebody may use it."""

    def __init__(self, sock: socket.socket, memory: Mapping, attached: Attached) -> None:
        """Closes `sock` with itself."""
        self.slots = attached.slots
        self.slot_bytes = attached.slot_bytes
        self.address = memory.address
        self.pool = attached.pool
        self._memory: Mapping | None = memory
        self._socket = sock
        self._socket.setblocking(False)

    def slot(self, index: int) -> memoryview:
        """One slot's bytes; the view keeps the memory mapped."""
        assert self._memory is not None, "the pool was closed"
        return view_of(self.address + index * self.slot_bytes, self.slot_bytes, self._memory)

    def alive(self) -> bool:
        """Whether the service still holds the other end; does not block."""
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Tells the service that nobody reads or writes here any more: so nobody may. Idempotent."""
        self._socket.close()
        self._memory = None  # unmapped when the last view goes, too


def map_pool(path: Path, attach: Attach, timeout_s: float) -> MappedPool:
    """Maps a pool's memory for a rank.

    Raises ConnectionLostError when there is no service, or it does not answer in time; ConfigError when it cannot have
    such a pool.
    """
    deadline_s = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        sock = connect(path, timeout_s)
        stack.callback(sock.close)
        try:
            sock.sendall(frame(attach))
            reply, fds = _first_reply(sock, deadline_s)
        except OSError as error:
            raise ConnectionLostError(f"the block manager at {path} does not answer: {error}") from error
        for fd in fds:
            stack.callback(os.close, fd)
        if isinstance(reply, Refused):
            raise _refusal(reply)
        if not isinstance(reply, Attached) or len(fds) != 1:
            raise ProtocolError(f"the block manager at {path} has not sent its memory")
        memory = mapped(fds[0], reply.memory_bytes, writable=True)
        os.close(fds[0])
        stack.pop_all()
        return MappedPool(sock, memory, reply)


def _first_reply(sock: socket.socket, deadline_s: float) -> tuple[Reply, list[int]]:
    """And the descriptors that came with it."""
    reader = reply_reader()
    fds: list[int] = []
    try:
        while True:
            sock.settimeout(max(0.001, deadline_s - time.monotonic()))
            space = socket.CMSG_SPACE(array("i").itemsize)
            data, ancillary, _, _ = sock.recvmsg(_READ_BYTES, space, socket.MSG_CMSG_CLOEXEC)
            for _, kind, packed in ancillary:
                fds += array("i", packed) if kind == socket.SCM_RIGHTS else ()
            if not data:
                raise ConnectionLostError("the block manager has closed the connection")
            if replies := reader.feed(data):
                return replies[0], fds
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _refusal(refused: Refused) -> DynamoError:
    """ConfigError for what cannot be, ConnectionLostError for all else."""
    error = from_info(ErrorInfo(code=refused.code, message=refused.message))
    if isinstance(error, ConfigError | ConnectionLostError):
        return error
    return ConnectionLostError(f"the block manager refuses: {error}")
