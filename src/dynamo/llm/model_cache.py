"""The folder that keeps prepared models, and how several processes fill it without harm."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dynamo.errors import ConfigError
from dynamo.llm.progress import Progress

_STAGING_PREFIX = ".staging-"
_LOCK_POLL_S = 0.2


def cache_dir() -> Path:
    """$DYN_CACHE_DIR, else $XDG_CACHE_HOME/dynamo, else ~/.cache/dynamo; it need not exist yet.

    Raises ConfigError when it would be in the home of a user who has none, such as an arbitrary uid in a container.
    """
    try:
        if own := os.environ.get("DYN_CACHE_DIR"):
            return Path(own).expanduser().absolute()
        if shared := os.environ.get("XDG_CACHE_HOME"):
            return Path(shared).absolute() / "dynamo"
        return Path.home() / ".cache" / "dynamo"
    except RuntimeError as error:
        raise ConfigError("this user has no home directory for a cache: set DYN_CACHE_DIR to a folder") from error


@contextlib.contextmanager
def exclusive(folder: Path, *, progress: Progress, timeout_s: float) -> Iterator[None]:
    """Makes `folder` and lets one process at a time work in it.

    The kernel drops the lock when its holder ends, however that happens, so nothing stale is left.
    Raises ConfigError when another process still holds it after `timeout_s`, OSError when `folder` can't be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as lock:
        _acquire(lock.fileno(), folder, progress, deadline_s=time.monotonic() + timeout_s)
        yield


def _acquire(lock_fd: int, folder: Path, progress: Progress, *, deadline_s: float) -> None:
    waiting = False
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting:
                progress.note(f"another process is working in {folder}, waiting for it")
                waiting = True
            if time.monotonic() > deadline_s:
                raise ConfigError(
                    f"another process has been working in {folder} for too long; end it and retry"
                ) from None
            time.sleep(_LOCK_POLL_S)  # flock itself knows no deadline
        else:
            return


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A directory inside `folder` for unfinished work, gone afterwards; hold exclusive(folder) around it.

    What is finished leaves it by os.replace, which is atomic because both are on one file system. Leftovers of
    processes that were killed are removed first.
    """
    for leftover in folder.glob(_STAGING_PREFIX + "*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_STAGING_PREFIX, dir=folder, ignore_cleanup_errors=True) as path:
        yield Path(path)
