"""Cross memory attach: the kernel copies from one process's memory to another's, without a buffer in between.

process_vm_readv(2) and process_vm_writev(2), between processes of one user on one host. A probe tells whether they
work here: other users, other PID namespaces, Yama and seccomp can forbid it.
"""

import ctypes
import errno
import os
import secrets
from array import array
from collections.abc import Iterable
from pathlib import Path

from dynamo.errors import ConnectionLostError, InvalidRequestError
from dynamo.transfer.job import Job, RegionKey
from dynamo.transfer.ledger import COOKIE_BYTES, KEYS_OFFSET, LEDGER_BYTES, Ledger
from dynamo.transfer.metadata import AgentMetadata, CmaOffer, RegionInfo
from dynamo.transfer.vector import IOV_MAX

_CALL_BYTES_MAX = 16 << 20  # of one call of the kernel, which nothing can interrupt
_KEYS_MAX = IOV_MAX - 1  # that one call can read, beside the cookie
_INLINE_BYTES_MAX = 256 << 10
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)
_YAMA_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")


class CmaTarget:
    """As Target: it has nothing to do but to say where the memory is."""

    def __init__(self) -> None:
        self._memory = ctypes.create_string_buffer(LEDGER_BYTES)
        address = ctypes.addressof(self._memory)
        self._ledger = Ledger(address)
        self._offer = CmaOffer(pid=os.getpid(), ledger_address=address, cookie=secrets.token_bytes(COOKIE_BYTES))
        self._ledger.open(self._offer.cookie)
        _allow_others()

    def offer(self, metadata: AgentMetadata) -> None:
        metadata.cma = self._offer

    def set_key(self, region_id: int, key: int) -> None:
        self._ledger.set_key(region_id, key)

    def close(self) -> None:
        self._ledger.close()


class CmaLink:
    """As Link."""

    name = "cma"
    lanes = 2
    inline_bytes_max = _INLINE_BYTES_MAX

    def __init__(self, offer: CmaOffer) -> None:
        """Raises ConnectionLostError where it does not work."""
        self._pid = offer.pid
        self._cookie = offer.cookie
        self._ledger_address = offer.ledger_address
        self._closed = False
        self._check(())

    def reaches(self, regions: Iterable[RegionInfo]) -> bool:
        return True

    def ready(self, regions: Iterable[RegionInfo]) -> bool:
        return True

    def copy(self, job: Job) -> None:
        call = _write if job.write else _read
        local, remote = job.local, job.remote
        while len(local):
            job.control.check()
            if self._closed:
                raise ConnectionLostError("the link was closed")
            if job.write:
                self._check(job.keys)  # each time: what the peer has deregistered since may be something else's by now
            pieces, size_bytes = local.take(_CALL_BYTES_MAX)
            copied = call(self._pid, local.pointer, pieces, remote.pointer, pieces, 0)
            if copied < 0:
                failure = _failure(ctypes.get_errno())
                self._check(job.keys)  # which knows better what is wrong
                raise failure
            job.done_bytes += copied
            if copied == size_bytes:
                local.skip(pieces)
                remote.skip(pieces)
            else:
                local.advance(copied)
                remote.advance(copied)
                self._check(job.keys)  # and then once more, for the error
        self._check(job.keys)  # or it was somebody else's memory by the end

    def close(self) -> None:
        self._closed = True

    def _check(self, keys: tuple[RegionKey, ...]) -> None:
        """Raises ConnectionLostError if this is not the peer any more, InvalidRequestError if not its regions."""
        for begin in range(0, max(len(keys), 1), _KEYS_MAX):
            self._check_some(keys[begin : begin + _KEYS_MAX])

    def _check_some(self, keys: tuple[RegionKey, ...]) -> None:
        """As many as one call of the kernel can look at."""
        found = array("Q", bytes(COOKIE_BYTES + 8 * len(keys)))
        here = array("Q", [found.buffer_info()[0], 8 * len(found)])
        there = array("Q", [self._ledger_address, COOKIE_BYTES])
        for region_id, _ in keys:
            there.extend((self._ledger_address + KEYS_OFFSET + 8 * region_id, 8))
        read = _read(self._pid, here.buffer_info()[0], 1, there.buffer_info()[0], 1 + len(keys), 0)
        if read < 0:
            raise _failure(ctypes.get_errno())
        values = found[COOKIE_BYTES // 8 :]
        if read != 8 * len(found) or found[: COOKIE_BYTES // 8].tobytes() != self._cookie:
            raise ConnectionLostError("the peer's process is gone")
        for (region_id, key), value in zip(keys, values, strict=True):
            if value != key:
                raise InvalidRequestError(f"the peer's region {region_id} is not registered any more")


def _failure(number: int) -> ConnectionLostError:
    text = {
        errno.ESRCH: "the peer's process is gone",
        errno.EPERM: "this process may not reach the peer's memory",
        errno.EFAULT: "the memory is not there any more",
    }.get(number, os.strerror(number))
    return ConnectionLostError(f"cma: {text}")


def _allow_others() -> None:
    """Where Yama lets only parents look into a process, this one lets any of its user's."""
    try:
        restricted = _YAMA_SCOPE.read_text(encoding="ascii").strip() == "1"
    except OSError:
        return  # no Yama here
    if restricted:
        _libc.prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)


_libc = ctypes.CDLL(None, use_errno=True)
_read, _write = _libc.process_vm_readv, _libc.process_vm_writev
for _function in (_read, _write):
    _function.restype = ctypes.c_ssize_t
    _function.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
    )
