"""One service at a time for each socket: whoever holds the lock beside it."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from dynamo.errors import ConfigError
from dynamo.kvbm.socket_path import private_directory


@contextlib.contextmanager
def elected(path: Path) -> Iterator[None]:
    """Within the block this process is the one that listens at `path`; the kernel lets go of the lock at a crash.

    Raises ConfigError when another one is, or the path cannot be.
    """
    private_directory(path)
    descriptor = os.open(_lock(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"there is a block manager at {path} already") from None
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path) -> Path:
    return path.with_name(path.name + ".lock")
