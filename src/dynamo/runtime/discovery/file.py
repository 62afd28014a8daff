"""Discovery through a directory of one host; no service needed.

Each entry is a file that its owner has locked (see entry_file.py); everybody looks at the directory ten times a second.
"""

import asyncio
import contextlib
import logging
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from dynamo.errors import ConfigError
from dynamo.runtime.discovery.base import Delete, Event, Put, Watch
from dynamo.runtime.discovery.entry_file import OwnedEntry, SeenEntry, create_entry, entry_names, open_entry
from dynamo.runtime.user_directory import user_directory

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.1  # a birth or death is seen within this time


def default_directory() -> Path:
    """A directory for this user only."""
    return user_directory() / "discovery"


class FileRegistration:
    """An entry of this process, put back when somebody cleans up the directory under it."""

    def __init__(
        self, directory: Path, key: str, value: bytes, on_withdraw: Callable[["FileRegistration"], None]
    ) -> None:
        self._directory = directory
        self._value = value
        self._on_withdraw = on_withdraw
        self.key = key
        self._entry = _create(directory, key, value)

    async def withdraw(self) -> None:
        self._on_withdraw(self)
        try:
            self._entry.remove()
        except OSError as error:  # the lock is gone, so others see the end of the entry all the same
            logger.warning("cannot remove the discovery entry %s: %s", self.key, error)

    def restore(self) -> None:
        """Makes the entry again when its file is gone; ValueError when another process has taken the key since.

        The old lock is held until then: who has seen the entry knows by it that its owner lives.
        """
        if not self._entry.in_place:
            wiped = self._entry
            try:
                self._entry = _create(self._directory, self.key, self._value)
            finally:
                wiped.release()

    def release(self) -> None:
        """Closes this process's hold on the lock."""
        self._entry.release()


class FileDiscovery:
    """One process's view of a discovery directory."""

    def __init__(self, directory: Path | None = None, *, poll_interval_s: float = POLL_INTERVAL_S) -> None:
        self._directory = directory or default_directory()
        self._poll_interval_s = poll_interval_s
        self._registered: dict[FileRegistration, None] = {}
        self._seen: dict[str, SeenEntry] = {}  # file name -> living entry
        self._watches: list[Watch] = []
        self._poller: asyncio.Task[None] | None = None
        self._unreadable: set[str] = set()  # file names that were warned about
        _release_locks_after_fork(self)

    async def register(self, key: str, value: bytes) -> FileRegistration:
        registration = FileRegistration(self._directory, key, value, self._forget)
        self._registered[registration] = None
        self._start_polling()
        return registration

    def watch(self, prefix: str) -> Watch:
        """Raises ConfigError when the directory cannot be read."""
        self._scan()
        watch = Watch(prefix, self._watches.remove)
        for entry in self._seen.values():
            watch.publish(Put(entry.key, entry.value))
        self._watches.append(watch)
        self._start_polling()
        return watch

    async def close(self) -> None:
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.wait([self._poller])
            self._poller = None
        for registration in tuple(self._registered):
            await registration.withdraw()
        for watch in tuple(self._watches):
            watch.close()
        for entry in self._seen.values():
            entry.close()
        self._seen.clear()

    def release_locks(self) -> None:
        """Closes the inherited locks in a forked child, which would keep a dead parent's entries alive."""
        for registration in self._registered:
            registration.release()
        self._registered.clear()

    def _forget(self, registration: FileRegistration) -> None:
        self._registered.pop(registration, None)

    def _start_polling(self) -> None:
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll(), name="file-discovery")

    async def _poll(self) -> None:
        failure = ""
        while True:
            await asyncio.sleep(self._poll_interval_s)
            try:
                self._restore()
                if self._watches:
                    self._scan()
                failure = ""
            except (ConfigError, OSError) as error:  # it may pass: no reason to end discovery for good
                if str(error) != failure:
                    failure = str(error)
                    logger.warning("%s", failure)

    def _restore(self) -> None:
        for registration in tuple(self._registered):
            try:
                registration.restore()
            except ValueError as error:
                logger.error("a discovery entry of this process was removed: %s", error)
                self._forget(registration)

    def _scan(self) -> None:
        """Compares the directory with what is known and publishes the differences; ConfigError if it is unreadable.

        Births come before deaths: where a successor has taken over since the last look, somebody is always there. A
        file that somebody has removed is no death as long as it is locked: its owner will put it back.
        """
        names = _names(self._directory)
        dead: set[str] = set()  # keys
        for name, entry in tuple(self._seen.items()):
            if entry.is_dead():
                entry.close()
                del self._seen[name]
                dead.add(entry.key)
        self._unreadable &= names
        for name in names - self._seen.keys():
            if (new := self._open(name)) is not None:
                self._seen[name] = new
                dead.discard(new.key)
                self._publish(Put(new.key, new.value))
        for key in dead:
            self._publish(Delete(key))

    def _open(self, name: str) -> SeenEntry | None:
        try:
            return open_entry(self._directory / name)
        except OSError as error:  # another user's, perhaps: not a reason to miss all the others
            if name not in self._unreadable:
                self._unreadable.add(name)
                logger.warning("cannot read the discovery entry %s: %s", name, error.strerror)
            return None

    def _publish(self, event: Event) -> None:
        for watch in self._watches:
            watch.publish(event)


def _create(directory: Path, key: str, value: bytes) -> OwnedEntry:
    """Raises ConfigError and ValueError as Discovery.register does."""
    with _config_errors(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(directory)
        try:
            return create_entry(directory, key, value)
        except FileExistsError:
            raise ValueError(f"{key} is already registered") from None


def _names(directory: Path) -> set[str]:
    with _config_errors(directory):
        try:
            _check_owner(directory)
        except FileNotFoundError:
            return set()  # nobody has registered yet
        return entry_names(directory)


@contextlib.contextmanager
def _config_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot use the discovery directory {directory}: {error.strerror or error}") from error


def _check_owner(directory: Path) -> None:
    """A directory that another user has made under the name of ours could be full of lies."""
    owner = directory.stat().st_uid
    if os.getuid() not in (0, owner) and owner != 0:
        raise ConfigError(f"the discovery directory {directory} belongs to another user ({owner})")


def _release_locks_after_fork(discovery: FileDiscovery) -> None:
    reference = weakref.ref(discovery)  # hooks cannot be taken back, so it must not keep the object alive

    def release() -> None:
        if (alive := reference()) is not None:
            alive.release_locks()

    os.register_at_fork(after_in_child=release)
