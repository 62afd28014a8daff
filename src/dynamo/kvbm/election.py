"""One service at a time for each socket: whoever holds the lock beside it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from dynamo.errors import ConfigError
from dynamo.kvbm.socket_path import private_place
from dynamo.runtime.lock_file import lock_file


@contextlib.contextmanager
def elected(path: Path) -> Iterator[None]:
    """Within the block this process is the one that listens at `path`; the kernel lets go of the lock at a crash.

    Raises ConfigError when another one is, or the path cannot be.
    """
    private_place(path)
    try:
        descriptor = lock_file(path.with_name(path.name + ".lock"))
    except BlockingIOError:
        raise ConfigError(f"there is a block manager at {path} already") from None
    except OSError as error:
        raise ConfigError(f"it cannot be told whether there is a block manager at {path}: {error}") from error
    try:
        yield
    finally:
        os.close(descriptor)
