"""Shared memory: the side that reads or writes has mapped the memory of the other, and copies as within a process.

For where cross memory attach is forbidden. It needs memory from Agent.allocate(): a peer that shows the secret is sent
its file descriptor over a Unix socket, and maps it once. Mapped memory outlives its owner. So the connection stays,
for it ends when the owner does; and the owner's ledger, which is mapped too, says what is still registered.
"""

import bisect
import ctypes
import hmac
import logging
import operator
import os
import secrets
import select
import socket
import threading
import time
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from dynamo.errors import ConnectionLostError, DeadlineExceededError, InvalidRequestError
from dynamo.transfer import shared_memory
from dynamo.transfer.acceptor import Acceptor, shut
from dynamo.transfer.job import Control, Job, RegionKey
from dynamo.transfer.ledger import COOKIE_BYTES, LEDGER_BYTES, Ledger
from dynamo.transfer.memory import Region
from dynamo.transfer.metadata import AgentMetadata, RegionInfo, ShmOffer
from dynamo.transfer.shared_memory import SharedMemory
from dynamo.transfer.vector import PIECE_BYTES_MAX, Vector

logger = logging.getLogger(__name__)

_INLINE_BYTES_MAX = 256 << 10
_HANDSHAKE_TIMEOUT_S = 5.0
_TICK_S = 0.1  # how long a thread may wait before it looks whether it is still wanted
_MESSAGE_BYTES_MAX = 256


class _Wanted(msgspec.Struct, array_like=True, frozen=True):
    """A peer asks for a region."""

    key: RegionKey


class _Given(msgspec.Struct, array_like=True, frozen=True):
    """The answer, which comes with the file descriptor; or with none, when there is no such region."""

    key: RegionKey
    address: int = 0  # in its owner's memory
    size_bytes: int = 0


class ShmTarget:
    """As Target: hands out what can be mapped."""

    def __init__(self, regions: Mapping[int, Region]) -> None:
        """`regions` by id, which change. Raises OverloadedError when there is no shared memory to be had."""
        self._regions = regions
        self._ledger_memory = SharedMemory(LEDGER_BYTES)
        self._ledger = Ledger(self._ledger_memory.address)
        self._offer = ShmOffer(
            socket=f"dynamo-transfer-{secrets.token_hex(8)}",
            secret=secrets.token_bytes(16),
            cookie=secrets.token_bytes(COOKIE_BYTES),
        )
        self._ledger.open(self._offer.cookie)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listening.bind(_abstract(self._offer.socket))
        self._acceptor = Acceptor(listening, self._serve, "transfer-shm")

    def offer(self, metadata: AgentMetadata) -> None:
        metadata.shm = self._offer

    def set_key(self, region_id: int, key: int) -> None:
        self._ledger.set_key(region_id, key)

    def close(self) -> None:
        self._ledger.close()
        self._acceptor.close()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(_HANDSHAKE_TIMEOUT_S)
        try:
            if not hmac.compare_digest(sock.recv(_MESSAGE_BYTES_MAX), self._offer.secret):
                return
            socket.send_fds(sock, [b"ledger"], [self._ledger_memory.fd])
            sock.settimeout(None)
            while request := sock.recv(_MESSAGE_BYTES_MAX):
                self._answer(sock, msgspec.msgpack.decode(request, type=_Wanted).key)
        except (OSError, msgspec.DecodeError) as error:
            logger.debug("a connection for shared memory has ended: %s", error)

    def _answer(self, sock: socket.socket, key: RegionKey) -> None:
        region = self._regions.get(key[0])  # held, so that its descriptor stays open
        if region is None or region.key != key[1] or region.fd is None:
            sock.send(msgspec.msgpack.encode(_Given(key)))
        else:
            given = _Given(key, region.address, region.size_bytes)
            socket.send_fds(sock, [msgspec.msgpack.encode(given)], [region.fd])


@dataclass(frozen=True, slots=True)
class _Mapped:
    """A region of the peer's, and where it is here."""

    begin: int  # there
    memory: shared_memory.Mapping


class ShmLink:
    """As Link."""

    name = "shm"
    lanes = 1
    inline_bytes_max = _INLINE_BYTES_MAX

    def __init__(self, offer: ShmOffer) -> None:
        """Raises ConnectionLostError when nobody is there."""
        self._cookie = offer.cookie
        self._mapped: dict[RegionKey, _Mapped] = {}
        self._asking = threading.Lock()  # one question at a time
        self._lock = threading.Lock()  # of what follows
        self._copying = 0
        self._closed = False
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._ledger_memory = self._greet(offer)
            self._ledger = Ledger(self._ledger_memory.address)
            self._ledger.check(self._cookie, ())
        except BaseException:
            self._sock.close()
            raise

    def reaches(self, regions: Iterable[RegionInfo]) -> bool:
        return all(region.shared for region in regions)

    def ready(self, regions: Iterable[RegionInfo]) -> bool:
        return all((region.id, region.key) in self._mapped for region in regions)

    def copy(self, job: Job) -> None:
        with self._lock:
            if self._closed:
                raise ConnectionLostError("the link was closed")
            self._copying += 1
        try:
            self._copy(job)
        finally:
            with self._lock:
                self._copying -= 1
                if self._closed and not self._copying:
                    self._sock.close()

    def close(self) -> None:
        """What a copy under way uses stays mapped until it has ended."""
        with self._lock:
            self._closed = True
            self._mapped = {}
            shut(self._sock)
            if not self._copying:
                self._sock.close()

    def _copy(self, job: Job) -> None:
        mapped = [self._mapped.get(key) or self._map(key, job.control) for key in job.keys]
        local, far, done = job.local, _here(job.remote, mapped), 0
        connection = select.poll()
        connection.register(self._sock, select.POLLRDHUP)
        self._ledger.check(self._cookie, job.keys)
        while len(local):
            job.control.check()
            _check_open(connection)
            pieces, size_bytes = local.take(PIECE_BYTES_MAX)
            near, lengths = local.columns(pieces)
            to, start = (far[done : done + pieces], near) if job.write else (near, far[done : done + pieces])
            for _ in map(_memmove, to, start, lengths):
                pass  # all of it is done by map
            local.skip(pieces)
            done += pieces
            job.done_bytes += size_bytes
        _check_open(connection)
        self._ledger.check(self._cookie, job.keys)  # or it was somebody else's memory by the end

    def _map(self, key: RegionKey, control: Control) -> _Mapped:
        """Raises what copy() raises."""
        while not self._asking.acquire(timeout=_TICK_S):
            control.check()
        try:
            found = self._mapped.get(key)
            if found is not None:
                return found
            given, fd = self._ask(key, control)
            try:
                memory = shared_memory.mapped(fd, given.size_bytes, writable=True)
            finally:
                os.close(fd)
            found = _Mapped(given.address, memory)
            self._keep(key, found)
            return found
        finally:
            self._asking.release()

    def _keep(self, key: RegionKey, mapped: _Mapped) -> None:
        """And forgets those that are not registered any more."""
        with self._lock:
            if not self._closed:
                current = {key: mapped for key, mapped in self._mapped.items() if self._ledger.has(key)}
                self._mapped = {**current, key: mapped}

    def _ask(self, key: RegionKey, control: Control) -> tuple[_Given, int]:
        try:
            self._sock.send(msgspec.msgpack.encode(_Wanted(key)))
        except OSError as error:
            raise ConnectionLostError(f"shm: the connection is lost: {error}") from error
        while True:
            message, fd = self._receive(control)
            try:
                given = msgspec.msgpack.decode(message, type=_Given)
            except msgspec.DecodeError as error:
                raise ConnectionLostError("shm: the peer does not speak our protocol") from error
            if given.key == key and fd is not None:
                return given, fd
            if fd is not None:
                os.close(fd)  # for a question that was given up
            if given.key == key:
                raise InvalidRequestError(f"the peer's region {key[0]} is not registered any more")

    def _greet(self, offer: ShmOffer) -> shared_memory.Mapping:
        self._sock.settimeout(_TICK_S)
        try:
            self._sock.connect(_abstract(offer.socket))
            self._sock.send(offer.secret)
            _, fd = self._receive(Control(deadline_s=time.monotonic() + _HANDSHAKE_TIMEOUT_S))
        except (OSError, DeadlineExceededError) as error:
            raise ConnectionLostError(f"shm: cannot connect to the peer: {error}") from error
        if fd is None:
            raise ConnectionLostError("shm: the peer has sent no memory")
        try:
            return shared_memory.mapped(fd, LEDGER_BYTES, writable=False)
        finally:
            os.close(fd)

    def _receive(self, control: Control) -> tuple[bytes, int | None]:
        """A message, and the file descriptor that came with it."""
        while True:
            control.check()
            try:
                message, fds, _, _ = socket.recv_fds(self._sock, _MESSAGE_BYTES_MAX, 1, socket.MSG_CMSG_CLOEXEC)
            except TimeoutError:
                continue
            except OSError as error:
                raise ConnectionLostError(f"shm: the connection is lost: {error}") from error
            if not message:
                raise ConnectionLostError("shm: the peer has closed the connection")
            return message, fds[0] if fds else None


def _here(remote: Vector, mapped: Iterable[_Mapped]) -> "array[int]":
    """Where the peer's pieces are here. Raises ConnectionLostError for those that are nowhere."""
    begins, ends, shifts = [], [0], [0]  # the first of ends and shifts: for what lies before all regions
    for region in sorted(mapped, key=lambda region: region.begin):
        begins.append(region.begin)
        ends.append(region.begin + region.memory.size_bytes)
        shifts.append(region.memory.address - region.begin)
    addresses, lengths = remote.columns(len(remote))
    at = [bisect.bisect_right(begins, address) for address in addresses]
    if not all(map(operator.le, map(operator.add, addresses, lengths), map(ends.__getitem__, at))):
        raise ConnectionLostError("shm: the peer has sent less memory than it has told of")
    return array("Q", map(operator.add, addresses, map(shifts.__getitem__, at)))


def _check_open(connection: select.poll) -> None:
    if connection.poll(0):
        raise ConnectionLostError("the peer's process is gone")


def _abstract(name: str) -> bytes:
    """The address of a socket that has no file, so that a crash leaves none behind."""
    return b"\0" + name.encode()


_memmove = ctypes.CDLL(None).memmove  # lets go of the GIL
_memmove.restype = None
_memmove.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
