"""What a running deployment says about itself: log lines above, one live line of figures below."""

import contextlib
import errno
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TextIO

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from dynamo.cli.process import Child, State

_MARKS = {State.STARTING: "◌", State.UP: "●", State.WAITING: "✗", State.DRAINING: "◑", State.STOPPED: "○"}
_CLEAR = "\r\x1b[K"  # the line that the cursor is in
_NAMED_MAX = 4  # of a fleet of more, the status line tells how many are in which state
_WIDTH = 80  # where the terminal does not say


class Figures(msgspec.Struct, frozen=True):
    """Read off a frontend's /metrics."""

    requests: int = 0
    in_flight: int = 0
    tokens: int = 0

    @classmethod
    def parse(cls, metrics: str) -> "Figures":
        totals: dict[str, float] = {}
        for family in text_string_to_metric_families(metrics):
            for sample in family.samples:
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
        return cls(
            requests=int(totals.get("dynamo_frontend_requests_total", 0)),
            in_flight=int(totals.get("dynamo_frontend_inflight_requests", 0)),
            tokens=int(totals.get("dynamo_frontend_output_tokens_total", 0)),
        )


class StatusLine:
    """Prints log lines; on a terminal it keeps a status line under them."""

    def __init__(self, children: Sequence[Child], out: TextIO = sys.stderr) -> None:
        self._children = children
        self._out = out
        self._live = out.isatty()
        self._progress: dict[str, str] = {}
        self._figures = Figures()
        self._tokens_per_s = 0.0
        self._updated_s = time.monotonic()

    def log(self, name: str, text: str, complete: bool) -> None:
        """A line from a child; not `complete`: what its progress bar shows now."""
        if complete:
            self._progress.pop(name, None)
            self.print(f"[{name}] {text}")
        elif self._live:
            self._progress[name] = text
            self._draw()

    def print(self, text: str) -> None:
        self._write(f"{_CLEAR}{text}\n" if self._live else f"{text}\n")
        self._draw()

    def update(self, figures: Figures | None) -> None:
        """New figures; None when the frontend gave none."""
        now_s = time.monotonic()
        if figures is not None:
            new_tokens = figures.tokens - self._figures.tokens
            self._tokens_per_s = max(0, new_tokens) / max(now_s - self._updated_s, 1e-6)
            self._figures = figures
        self._updated_s = now_s
        self._draw()

    def close(self) -> None:
        """Leaves the terminal clean."""
        if self._live:
            self._write(_CLEAR)

    def _draw(self) -> None:
        if self._live:
            self._write(f"{_CLEAR}{self._text()[: self._width() - 1]}")  # a line that wraps could not be taken back

    def _text(self) -> str:
        people = " ".join(_people(self._children))
        for child in self._children:
            if child.state is State.STARTING and child.name in self._progress:
                return f"{people}  {child.name}: {self._progress[child.name]}"
        f = self._figures
        return f"{people}  {f.in_flight} in flight, {f.requests} requests, {self._tokens_per_s:.0f} tokens/s"

    def _width(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return os.get_terminal_size(self._out.fileno()).columns or _WIDTH
        return _WIDTH

    def _write(self, text: str) -> None:
        """The terminal may be gone; the deployment must be ended in order all the same."""
        try:
            self._out.write(text)
            self._out.flush()
        except OSError as error:
            if error.errno in (errno.EIO, errno.EPIPE):
                self._write_no_more()

    def _write_no_more(self) -> None:
        """What could not be written waits in a buffer, and would make Python exit with 120."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._out.fileno())
        os.close(nowhere)


def _people(children: Sequence[Child]) -> Iterator[str]:
    """Each process with its state; of a large fleet, how many are in which."""
    fleets: dict[str, list[Child]] = {}
    for child in children:
        fleets.setdefault(child.name.rpartition("-")[0] or child.name, []).append(child)
    for name, members in fleets.items():
        if len(members) > _NAMED_MAX:
            counts = Counter(child.state for child in members)
            yield " ".join([name, *(f"{mark}{counts[state]}" for state, mark in _MARKS.items() if counts[state])])
        else:
            yield from (f"{_MARKS[child.state]} {child.name}" for child in members)
