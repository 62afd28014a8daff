"""One discovery entry as a file that its owner holds an exclusive flock on.

The kernel drops the lock when the owner dies, however it dies, so whoever gets a shared lock knows that the entry is
stale. The owner locks the file before it gives it its name: a visible file without a lock is always a dead one. Files
that do not start as ours do are never touched, so that a directory chosen by mistake comes to no harm.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
from pathlib import Path
from urllib.parse import quote, unquote

from dynamo.runtime.file_identity import is_file_of

_ENTRY = "@"  # first character of an entry's file name: quoting never leaves it in a key
_NASCENT = ".@"  # of a file that has no name yet
_MAGIC = b"dynamo-discovery-1 "  # then the quoted key, a newline and the value
_QUOTED_BYTES_MAX = 200  # a file name may have 255
_ABANDONED_AFTER_S = 60.0
_FILE_BYTES_MAX = 2 << 20  # nothing that a process says of itself is nearly as long


class OwnedEntry:
    """An entry of this process, alive until it is removed or the process dies."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor: int | None = descriptor

    @property
    def in_place(self) -> bool:
        """False once somebody has removed the file."""
        return self._descriptor is not None and is_file_of(self._path, self._descriptor)

    def remove(self) -> None:
        """Takes the entry back; idempotent."""
        try:
            if self.in_place:
                self._path.unlink(missing_ok=True)
        finally:
            self.release()

    def release(self) -> None:
        """Closes this process's hold on the lock; idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class SeenEntry:
    """An entry of any process; it stays open so that testing its lock is one system call."""

    def __init__(self, path: Path, descriptor: int, key: str, value: bytes) -> None:
        self._path = path
        self._descriptor = descriptor
        self.key = key
        self.value = value

    def is_dead(self) -> bool:
        """True when the owner is gone; the file is removed then, if it can be."""
        return _remove_if_dead(self._path, self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def create_entry(directory: Path, key: str, value: bytes) -> OwnedEntry:
    """Writes an entry into `directory`, which must exist; FileExistsError when a living process has that key."""
    path = directory / _file_name(key)
    try:
        return _create(path, key, value)
    except FileExistsError:
        if (taken := open_entry(path)) is None:  # the owner was dead, and its file is gone now
            return _create(path, key, value)
        taken.close()
        raise


def open_entry(path: Path) -> SeenEntry | None:
    """The living entry at `path`; None when there is none, or none of ours. A dead one is removed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        entry = _read(path, descriptor)
        if entry is not None and not entry.is_dead():
            return entry
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def entry_names(directory: Path) -> set[str]:
    """The names of the entries in `directory`; removes what writers that died half-way have left."""
    try:
        names = set(os.listdir(directory))
    except FileNotFoundError:
        return set()  # nobody has registered yet
    for name in names:
        if name.startswith(_NASCENT):
            _remove_if_abandoned(directory / name)
    return {name for name in names if name.startswith(_ENTRY)}


def _create(path: Path, key: str, value: bytes) -> OwnedEntry:
    nascent = path.with_name(f"{_NASCENT}{secrets.token_hex(8)}")
    descriptor = os.open(nascent, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(b"%s%s\n%s" % (_MAGIC, quote(key, safe="").encode(), value))
        os.link(nascent, path)  # unlike rename, fails when the name is taken
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        nascent.unlink(missing_ok=True)
    return OwnedEntry(path, descriptor)


def _file_name(key: str) -> str:
    quoted = quote(key, safe="")
    if len(quoted) > _QUOTED_BYTES_MAX:
        quoted = f"{quoted[: _QUOTED_BYTES_MAX // 2]}+{hashlib.sha256(quoted.encode()).hexdigest()}"
    return _ENTRY + quoted


def _read(path: Path, descriptor: int) -> SeenEntry | None:
    """None for a file that is not ours: every entry has the name that its key gives it."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > _FILE_BYTES_MAX:
        return None
    with open(descriptor, "rb", closefd=False) as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return None
        quoted, _, value = file.read(_FILE_BYTES_MAX).partition(b"\n")
    key = unquote(quoted.decode(errors="replace"))
    return SeenEntry(path, descriptor, key, value) if path.name == _file_name(key) else None


def _remove_if_dead(path: Path, descriptor: int) -> bool:
    if not _lock(descriptor, fcntl.LOCK_SH):
        return False
    # Only one may look and remove at a time: between the two, a new owner could have taken the name.
    if _lock(descriptor, fcntl.LOCK_EX):
        with contextlib.suppress(OSError):  # dead it is all the same; the directory may be read-only
            if is_file_of(path, descriptor):
                path.unlink(missing_ok=True)
    return True


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
            raise
        return False
    return True


def _remove_if_abandoned(path: Path) -> None:
    with contextlib.suppress(OSError):  # gone already, or not ours to remove
        if time.time() - path.lstat().st_mtime > _ABANDONED_AFTER_S:
            path.unlink()
