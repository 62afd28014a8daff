"""Discovery through a directory of one host; no service needed.

Each entry is a file that its owner holds an exclusive flock on. The kernel drops the lock when the owner dies, however
it dies, so a watcher that gets a shared lock knows that the entry is stale, and removes it. The owner locks the file
before it gives it its final name: a visible file without a lock is always a dead one.
"""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import secrets
import tempfile
import time
import weakref
from pathlib import Path
from urllib.parse import quote, unquote

from dynamo.errors import ConfigError
from dynamo.runtime.discovery.base import Delete, Event, Put, Watch

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.1  # a birth or death is seen within this time
_HIDDEN_PREFIX = "."  # of files that are not yet entries
_ABANDONED_AFTER_S = 60.0


def default_directory() -> Path:
    """A directory for this user only."""
    return Path(tempfile.gettempdir()) / f"dynamo-{os.getuid()}" / "discovery"


class FileRegistration:
    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor: int | None = descriptor

    async def withdraw(self) -> None:
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            self.release()

    def release(self) -> None:
        """Closes this process's hold on the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _Entry:
    """A file seen by a watcher; it stays open so that testing its lock is one system call."""

    def __init__(self, key: str, value: bytes, descriptor: int) -> None:
        self.key = key
        self.value = value
        self.descriptor = descriptor

    def close(self) -> None:
        os.close(self.descriptor)


class FileDiscovery:
    """One process's view of a discovery directory."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory or default_directory()
        self._registered: list[FileRegistration] = []
        self._entries: dict[str, _Entry] = {}  # file name -> live entry
        self._watches: list[Watch] = []
        self._poller: asyncio.Task[None] | None = None
        _release_locks_after_fork(self)

    async def register(self, key: str, value: bytes) -> FileRegistration:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            registration = _create(self._directory, quote(key, safe=""), value)
        except FileExistsError:
            raise ValueError(f"{key} is already registered") from None
        except OSError as error:
            raise ConfigError(f"cannot register in the discovery directory {self._directory}: {error}") from error
        self._registered.append(registration)
        return registration

    def watch(self, prefix: str) -> Watch:
        watch = Watch(prefix, self._watches.remove)
        for entry in self._entries.values():
            watch.publish(Put(entry.key, entry.value))
        self._watches.append(watch)
        if self._poller is None:
            self._scan()
            self._poller = asyncio.create_task(self._poll(), name="file-discovery")
        return watch

    async def close(self) -> None:
        if self._poller is not None:
            self._poller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poller
        for registration in self._registered:
            await registration.withdraw()
        for watch in tuple(self._watches):
            watch.close()
        for entry in self._entries.values():
            entry.close()
        self._entries.clear()

    def release_locks(self) -> None:
        """Closes the inherited locks in a forked child, which would keep a dead parent's entries alive."""
        for registration in self._registered:
            registration.release()

    async def _poll(self) -> None:
        failure = ""
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            try:
                self._scan()
                failure = ""
            except OSError as error:  # a directory that is away for a moment must not end discovery for good
                if str(error) != failure:
                    failure = str(error)
                    logger.warning("cannot read the discovery directory %s: %s", self._directory, error)

    def _scan(self) -> None:
        """Compares the directory with what is known and publishes the differences."""
        names = _names(self._directory)
        for name, entry in tuple(self._entries.items()):
            if name not in names or _take_if_dead(entry.descriptor, self._directory / name):
                entry.close()
                del self._entries[name]
                self._publish(Delete(entry.key))
        for name in names - self._entries.keys():
            if name.startswith(_HIDDEN_PREFIX):
                _remove_if_abandoned(self._directory / name)
            elif (new := _open_live(self._directory / name)) is not None:
                self._entries[name] = new
                self._publish(Put(new.key, new.value))

    def _publish(self, event: Event) -> None:
        for watch in self._watches:
            watch.publish(event)


def _create(directory: Path, name: str, value: bytes) -> FileRegistration:
    """Writes and locks a file, then gives it its name; FileExistsError when the name is taken."""
    hidden = directory / f"{_HIDDEN_PREFIX}{secrets.token_hex(8)}"
    descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(value)
        os.link(hidden, directory / name)  # unlike rename, fails when the name is taken
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        hidden.unlink(missing_ok=True)
    return FileRegistration(directory / name, descriptor)


def _names(directory: Path) -> set[str]:
    try:
        return set(os.listdir(directory))
    except FileNotFoundError:
        return set()  # nobody has registered yet


def _open_live(path: Path) -> _Entry | None:
    """The entry at `path`, or None (and the file removed) when its owner is dead."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if _take_if_dead(descriptor, path):
        os.close(descriptor)
        return None
    with open(descriptor, "rb", closefd=False) as file:
        return _Entry(unquote(path.name), file.read(), descriptor)


def _take_if_dead(descriptor: int, path: Path) -> bool:
    """True when nobody holds the exclusive lock; removes the file then."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
            raise
        return False
    if _names_same_file(path, descriptor):
        path.unlink(missing_ok=True)
    return True


def _names_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_if_abandoned(path: Path) -> None:
    """Removes a file that never got its name because its writer died."""
    with contextlib.suppress(FileNotFoundError):
        if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S:
            path.unlink()


def _release_locks_after_fork(discovery: FileDiscovery) -> None:
    reference = weakref.ref(discovery)  # hooks cannot be taken back, so it must not keep the object alive

    def release() -> None:
        if (alive := reference()) is not None:
            alive.release_locks()

    os.register_at_fork(after_in_child=release)
