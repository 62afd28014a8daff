"""Tells the person at the terminal what takes time and how far it is."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TextIO

MB = 1_000_000
_BAR_WIDTH = 30

Report = Callable[[int], None]  # is told how many bytes are done so far


class Progress(Protocol):
    """Where slow work reports to."""

    def note(self, text: str) -> None:
        """Says one thing."""

    def measure(self, title: str, total_bytes: int) -> AbstractContextManager[Report]:
        """Shows how much of `total_bytes` is done while the block runs."""


class SilentProgress:
    """Says nothing."""

    def note(self, text: str) -> None:
        pass

    @contextlib.contextmanager
    def measure(self, title: str, total_bytes: int) -> Iterator[Report]:
        yield lambda done_bytes: None


class LineProgress:
    """One line before and one after, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    @contextlib.contextmanager
    def measure(self, title: str, total_bytes: int) -> Iterator[Report]:
        self.note(f"{title} ({total_bytes / MB:.0f} MB) ...")
        start_s = time.monotonic()
        yield lambda done_bytes: None
        self.note(f"{title}: done in {time.monotonic() - start_s:.1f} s")


class BarProgress:
    """A bar that moves, for a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    @contextlib.contextmanager
    def measure(self, title: str, total_bytes: int) -> Iterator[Report]:
        shown = -1

        def report(done_bytes: int) -> None:
            nonlocal shown
            percent = min(100, 100 * done_bytes // max(total_bytes, 1))
            if percent != shown:
                shown = percent
                bar = ("#" * (_BAR_WIDTH * percent // 100)).ljust(_BAR_WIDTH)
                print(f"\r{title} [{bar}] {percent:3d}% of {total_bytes / MB:.0f} MB", end="", file=self._stream)
                self._stream.flush()

        report(0)
        try:
            yield report
            report(total_bytes)
        finally:
            self.note("")  # whatever comes next starts on its own line


def terminal_progress(stream: TextIO | None = None) -> Progress:
    """The fitting Progress for `stream`, by default stderr."""
    stream = stream if stream is not None else sys.stderr
    return BarProgress(stream) if stream.isatty() else LineProgress(stream)
