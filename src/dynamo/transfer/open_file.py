"""A file that is open for transfers, past the page cache where that is possible."""

import errno
import logging
import os
import stat
from pathlib import Path

from dynamo.errors import ConnectionLostError, DynamoError, InvalidRequestError, NotFoundError, OverloadedError

logger = logging.getLogger(__name__)

ALIGNMENT_BYTES = 4096  # of O_DIRECT: no disk of today asks for more
_MODE = 0o600  # a cache tells what users wrote
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE)
_FORBIDDEN = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENXIO,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


class OpenFile:
    """Its descriptors, from here to close()."""

    def __init__(self, path: Path, size_bytes: int | None, *, writable: bool, direct: bool) -> None:
        """As Agent.register_file()."""
        self.path = path
        self.writable = writable
        self.descriptor = _open(path, writable=writable, create=writable and size_bytes is not None)
        self._direct: int | None = None
        self._goes_direct = False
        try:
            self.size_bytes = self._sized(size_bytes)
            if direct:
                self._open_direct()
        except BaseException:
            self.close()
            raise

    def descriptor_for(self, alignment: int) -> int:
        """Which to take for a call whose offset, addresses and lengths are all multiples of `alignment`, or'ed."""
        if self._goes_direct and self._direct is not None and alignment % ALIGNMENT_BYTES == 0:
            return self._direct
        return self.descriptor

    def refused(self, descriptor: int, number: int) -> None:
        """A call has failed with this errno: raises its error, unless another try may do better."""
        if number == errno.EINTR:
            return
        if number == errno.EINVAL and descriptor == self._direct:
            self._give_up_direct(number)
            return
        raise failure(self.path, number)

    def flush(self) -> None:
        """Returns when what was written is on the disk."""
        try:
            os.fdatasync(self.descriptor)
        except OSError as error:
            raise failure(self.path, error.errno) from error

    def close(self) -> None:
        os.close(self.descriptor)
        if self._direct is not None:
            os.close(self._direct)

    def _sized(self, size_bytes: int | None) -> int:
        """How many of its bytes are registered; it has them by then."""
        mode = os.fstat(self.descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise InvalidRequestError(f"{self.path} is no file")
        try:
            file_bytes = os.lseek(self.descriptor, 0, os.SEEK_END)  # fstat() does not know it of a device
            if size_bytes is not None and size_bytes > file_bytes and self.writable and stat.S_ISREG(mode):
                os.ftruncate(self.descriptor, size_bytes)
                file_bytes = size_bytes
        except OSError as error:
            raise failure(self.path, error.errno) from error
        if size_bytes is None:
            return file_bytes
        if not 0 <= size_bytes <= file_bytes:
            raise InvalidRequestError(f"{self.path} has {file_bytes} bytes, not {size_bytes}")
        return size_bytes

    def _open_direct(self) -> None:
        flags = (os.O_RDWR if self.writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_DIRECT
        try:
            # By its descriptor: by now the path may be another file's.
            self._direct = os.open(f"/proc/self/fd/{self.descriptor}", flags)
            self._goes_direct = True
        except OSError as error:
            self._give_up_direct(error.errno)

    def _give_up_direct(self, number: int | None) -> None:
        """Its descriptor stays: other threads may be in a call with it."""
        self._goes_direct = False
        logger.warning("transfers with %s go through the page cache: %s", self.path, os.strerror(number or 0))


def failure(path: Path, number: int | None) -> DynamoError:
    """What an errno means for who wanted the file."""
    text = f"{path}: {os.strerror(number or 0)}"
    if number == errno.ENOENT:
        return NotFoundError(text)
    if number in _FORBIDDEN:
        return InvalidRequestError(text)
    if number in _FULL:
        return OverloadedError(text)
    return ConnectionLostError(text)


def _open(path: Path, *, writable: bool, create: bool) -> int:
    flags = os.O_CLOEXEC | os.O_NONBLOCK  # which a pipe needs, so that it can be refused
    flags |= os.O_RDWR if writable else os.O_RDONLY
    try:
        return os.open(path, flags | os.O_CREAT if create else flags, _MODE)
    except OSError as error:
        raise failure(path, error.errno) from error
