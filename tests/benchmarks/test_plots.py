"""What is missing for a plot is said before anything is measured."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks import disagg, router
from benchmarks.plots import check_plot
from dynamo.errors import ConfigError

SLICE = Path(__file__).parents[1] / "data" / "mooncake_conversation_slice.jsonl"


@pytest.mark.parametrize("main", [disagg.main, router.main])
def test_without_matplotlib(
    main: Callable[[Sequence[str]], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert main([str(SLICE), "--plot", "plot.png"]) == 1
    shown = capsys.readouterr()
    assert "--plot needs matplotlib: pip install -e '.[plot]'" in shown.err
    assert shown.out == ""


def test_nowhere_to_draw_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    with pytest.raises(ConfigError, match="no directory /nowhere"):
        check_plot(Path("/nowhere/plot.png"))
    check_plot(Path("plot.png"))
    check_plot(None)
