"""Figures that are read while they are written."""

from pathlib import Path
from threading import Thread

from benchmarks.kvbm_hooks import HookFigures, read_figures, write_figures


def test_never_a_part(tmp_path: Path) -> None:
    def write() -> None:
        for calls in range(2000):
            write_figures(tmp_path, HookFigures("worker", 1 / 3, 2 / 3, calls))

    writer = Thread(target=write)
    writer.start()
    while writer.is_alive():
        assert all(figures.cpu_s == 1 / 3 for figures in read_figures(tmp_path).values())
    writer.join()
    assert read_figures(tmp_path) == {"worker": HookFigures("worker", 1 / 3, 2 / 3, 1999)}
