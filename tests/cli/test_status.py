"""The status line under the log."""

import io
import os
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from dynamo.cli.process import Child, State
from dynamo.cli.status import Figures, StatusLine
from dynamo.telemetry.metrics import FrontendMetrics


class Screen(io.StringIO):
    """A terminal of 80 columns."""

    def __init__(self, *, live: bool) -> None:
        super().__init__()
        self._live = live

    def isatty(self) -> bool:
        return self._live

    def last_line(self) -> str:
        return self.getvalue().rpartition("\r\x1b[K")[2]


def family(*states: State) -> list[Child]:
    made = [Child(f"worker-{i}", [], {}, lambda *_: None) for i in range(len(states))]
    for child, state in zip(made, states, strict=True):
        child.state = state
    return made


def line(children: Sequence[Child], *, live: bool = True) -> tuple[StatusLine, Screen]:
    screen = Screen(live=live)
    return StatusLine(children, screen), screen


def test_figures_come_from_the_frontends_own_metrics() -> None:
    registry = CollectorRegistry()
    metrics = FrontendMetrics(registry)
    for model, count in (("a", 2), ("b", 3)):
        metrics.requests.labels(model, "chat_completions", "stream", "success", "").inc(count)
        metrics.inflight.labels(model).inc(1)
        metrics.output_tokens.labels(model).add(100)
    assert Figures.parse(generate_latest(registry).decode()) == Figures(requests=5, in_flight=2, tokens=200)


def test_figures_of_a_frontend_without_requests() -> None:
    assert Figures.parse("") == Figures()


def test_states() -> None:
    children = family(*State)
    for child in children[:2]:
        child.name = child.name.replace("worker", "prefill")
    status, screen = line(children)
    status.print("hello")
    assert screen.getvalue().startswith("\r\x1b[Khello\n")
    assert (
        screen.last_line()
        == ("◌ prefill-0 ● prefill-1 ✗ worker-2 ◑ worker-3 ○ worker-4  0 in flight, 0 requests, 0 tokens/s"[:79])
    )


def test_a_large_fleet() -> None:
    status, screen = line([*family(State.UP)[:1], *family(State.UP, State.STARTING, State.UP, State.DRAINING)])
    status.update(None)
    assert screen.last_line().startswith("worker ◌1 ●3 ◑1  0 in flight")


def test_tokens_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    status, screen = line(family(State.UP))
    now_s = 102.0
    status.update(Figures(requests=4, in_flight=1, tokens=50))
    assert screen.last_line() == "● worker-0  1 in flight, 4 requests, 25 tokens/s"
    now_s = 103.0
    status.update(None)  # no answer
    now_s = 104.0
    status.update(Figures(requests=0, tokens=10))  # a new frontend, which counts anew
    assert screen.last_line().endswith("0 requests, 0 tokens/s")


def test_progress_is_shown_while_its_process_starts() -> None:
    children = family(State.STARTING, State.UP)
    status, screen = line(children)
    status.log("worker-0", "loading 10%", complete=False)
    assert screen.last_line() == "◌ worker-0 ● worker-1  worker-0: loading 10%"
    status.log("worker-0", "loading 20%", complete=False)
    assert screen.last_line().endswith("loading 20%")
    status.log("worker-0", "loaded", complete=True)
    assert "[worker-0] loaded\n" in screen.getvalue()
    assert screen.last_line().endswith("tokens/s")
    status.log("worker-0", "more 1%", complete=False)
    children[0].state = State.UP
    status.update(Figures())
    assert screen.last_line().endswith("tokens/s")


def test_without_a_terminal_only_lines() -> None:
    status, screen = line(family(State.STARTING), live=False)
    status.log("worker-0", "loading 10%", complete=False)
    status.log("worker-0", "loaded", complete=True)
    status.update(Figures(requests=1))
    status.print("bye")
    status.close()
    assert screen.getvalue() == "[worker-0] loaded\nbye\n"


def test_terminal_that_is_gone() -> None:
    class Gone(Screen):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    status = StatusLine(family(State.UP), Gone(live=True))
    status.print("nobody reads this")
    status.close()


def test_reader_that_has_gone() -> None:
    """What it did not take must not make the program's exit fail."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        status = StatusLine([], out)
        status.print("nobody reads this")
        status.print("nor this")
        out.flush()
