"""Locks that the kernel lets go of when their process ends, however it does."""

import fcntl
import os
from pathlib import Path


def lock_file(path: Path) -> int:
    """Makes the file, if need be, and locks it: its descriptor, which is closed to let go.

    Raises BlockingIOError when somebody else has it, OSError when it cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
