"""Memory that other processes can map too."""

import ctypes
import fcntl
import mmap
import os

from dynamo.errors import ConnectionLostError, InvalidRequestError, OverloadedError

_MADV_REMOVE = 9
_MADV_HUGEPAGE = 14
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Mapping:
    """A file, as it lies in this process's memory as long as this object lives."""

    __slots__ = ("address", "size_bytes")

    def __init__(self, fd: int, size_bytes: int, *, writable: bool) -> None:
        """`fd` may be closed afterwards. Raises OSError."""
        self.address = 0
        self.size_bytes = size_bytes
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        address = _mmap(None, _mapped_bytes(size_bytes), protection, mmap.MAP_SHARED, fd, 0)
        if address == _MAP_FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.address = address

    def prefer_huge_pages(self) -> None:
        """Tells the kernel that they would be of use, which it may heed or not."""
        _madvise(self.address, _mapped_bytes(self.size_bytes), _MADV_HUGEPAGE)

    def give_back(self) -> None:
        """The machine has the file's memory again. Whoever has mapped it finds zeros."""
        _madvise(self.address, _mapped_bytes(self.size_bytes), _MADV_REMOVE)

    def __del__(self) -> None:
        if self.address:
            _munmap(self.address, _mapped_bytes(self.size_bytes))


class SharedMemory:
    """Zeroed memory of this process that whoever gets `fd` can map too.

    It has no name, so a crash leaves nothing behind, and it cannot shrink under those who have mapped it. The memory is
    given back when this object goes: others then find zeros.
    """

    __slots__ = ("_mapping", "_pid", "address", "fd", "size_bytes", "writable")

    def __init__(self, size_bytes: int) -> None:
        """Raises InvalidRequestError for a size that is none, OverloadedError when there is not so much."""
        self.fd = -1
        self.address = 0
        self._pid = os.getpid()
        if size_bytes < 0:
            raise InvalidRequestError(f"{size_bytes} bytes cannot be allocated")
        try:
            self.fd = anonymous_file("dynamo-transfer", size_bytes)
            self._mapping = Mapping(self.fd, size_bytes, writable=True)
        except (OSError, OverflowError) as error:
            raise OverloadedError(f"{size_bytes} bytes of shared memory are not to be had: {error}") from error
        self.address = self._mapping.address
        self.size_bytes = size_bytes
        self.writable = True

    def __del__(self) -> None:
        if self.address and self._pid == os.getpid():  # a forked child's object goes, too
            self._mapping.give_back()
        if self.fd >= 0:
            os.close(self.fd)


def anonymous_file(name: str, size_bytes: int) -> int:
    """The descriptor of a file of zeros that is never smaller. Raises OSError, OverflowError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, _mapped_bytes(size_bytes))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def mapped(fd: int, size_bytes: int, *, writable: bool) -> Mapping:
    """A peer's SharedMemory of that size; `fd` stays the caller's.

    Raises ConnectionLostError when it is something else: what can shrink would kill this process at its next access.
    """
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        if not sealed or os.fstat(fd).st_size < size_bytes:
            raise ConnectionLostError("shm: what the peer has sent is not its shared memory")
        return Mapping(fd, size_bytes, writable=writable)
    except OSError as error:
        raise ConnectionLostError(f"shm: the peer's memory cannot be mapped: {error}") from error


def _mapped_bytes(size_bytes: int) -> int:
    return max(size_bytes, 1)  # nothing at all cannot be mapped


_libc = ctypes.CDLL(None, use_errno=True)
_mmap, _munmap, _madvise = _libc.mmap, _libc.munmap, _libc.madvise
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_MAP_FAILED = ctypes.c_void_p(-1).value
