"""A file as the other end of transfers: the kernel moves its bytes from and to many pieces of memory in one call.

preadv(2) and pwritev(2). Aligned runs go past the page cache: the memory that would hold them twice is worth more to
others.
"""

import ctypes
import threading
from collections.abc import Iterable

from dynamo.errors import ConnectionLostError, InvalidRequestError
from dynamo.transfer.job import Job
from dynamo.transfer.metadata import RegionInfo
from dynamo.transfer.open_file import OpenFile
from dynamo.transfer.runs import Run, runs

_LANES = 4


class FileLink:
    """As Link: the way to one file."""

    name = "file"
    lanes = _LANES
    inline_bytes_max = 0

    def __init__(self, file: OpenFile, *, sync: bool) -> None:
        """Owns the file. With `sync` what is written is on the disk when a job has ended."""
        self._file = file
        self._sync = sync
        self._lock = threading.Lock()
        self._closed = False
        self._copying = 0  # threads

    def reaches(self, regions: Iterable[RegionInfo]) -> bool:
        return True

    def ready(self, regions: Iterable[RegionInfo]) -> bool:
        return True

    def copy(self, job: Job) -> None:
        with self._lock:
            self._check_open()
            self._copying += 1
        try:
            for run in runs(job.local, job.remote):
                self._move(run, job)
            if job.write and self._sync:
                self._file.flush()
        finally:
            with self._lock:
                self._copying -= 1
                if self._closed and not self._copying:
                    self._file.close()

    def close(self) -> None:
        """The last thread that copies closes the file: its descriptor's number is soon another file's."""
        with self._lock:
            if not self._closed and not self._copying:
                self._file.close()
            self._closed = True

    def _move(self, run: Run, job: Job) -> None:
        call = _pwritev if job.write else _preadv
        offset, memory = run.offset, run.memory
        while len(memory):
            job.control.check()
            self._check_open()
            descriptor = self._file.descriptor_for(offset | memory.alignment)
            moved = call(descriptor, memory.pointer, len(memory), offset)
            if moved > 0:
                memory.advance(moved)
                offset += moved
                job.done_bytes += moved
            elif moved == 0:
                raise InvalidRequestError(f"{self._file.path} ends at byte {offset}, in the midst of the blocks")
            else:
                self._file.refused(descriptor, ctypes.get_errno())

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionLostError(f"{self._file.path} was deregistered")


_libc = ctypes.CDLL(None, use_errno=True)
_preadv, _pwritev = _libc.preadv, _libc.pwritev
for _function in (_preadv, _pwritev):
    _function.restype = ctypes.c_ssize_t
    _function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
