"""A file that may be replaced while the process runs."""

import os
import time
from pathlib import Path

_INTERVAL_S = 1.0


class WatchedFile:
    """Says whether the file is another one than before.

    It is looked at on demand, at most once a second: no signal that somebody would have to send, no task. A look costs
    some microseconds.
    """

    def __init__(self, path: Path, interval_s: float = _INTERVAL_S) -> None:
        self.path = path
        self._interval_s = interval_s
        self._looked_s = time.monotonic()
        self._state = self._look()

    def changed(self) -> bool:
        """True once for each change that was seen, its disappearance included."""
        now_s = time.monotonic()
        if now_s - self._looked_s < self._interval_s:
            return False
        self._looked_s = now_s
        before, self._state = self._state, self._look()
        return before != self._state

    def _look(self) -> tuple[int, int, int] | None:
        """None where there is no file. Follows links, as Kubernetes replaces the files of a secret by one.

        By the time of the latest change of whatever kind: one that could not be read may be readable now.
        """
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_ino, status.st_ctime_ns, status.st_size
