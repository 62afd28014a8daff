"""Goodput over the P:D ratio as a PNG picture. Needs matplotlib (extra `plot`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot

from benchmarks.disagg_report import Row

_PANEL_INCHES = (4.6, 4.2)
_DPI = 110


def draw_goodput(rows: Mapping[str, Sequence[Row]], path: Path) -> None:
    """A panel for each title: a line for each kind of fleet with prefill workers; dashed, the best fleet without."""
    mpl.use("Agg")  # no display
    width, height = _PANEL_INCHES
    figure, axes = pyplot.subplots(
        1, len(rows), figsize=(width * len(rows), height), layout="constrained", squeeze=False
    )
    for axis, (title, its_rows) in zip(axes.flat, rows.items(), strict=True):
        aggregated = [row for row in its_rows if not row.plan.prefill_workers]
        axis.axhline(max(row.goodput_per_s for row in aggregated), color="grey", linestyle="--", label="aggregated")
        disaggregated = [row for row in its_rows if row.plan.prefill_workers]
        for kind in dict.fromkeys(row.plan.kind for row in disaggregated):
            points = [row for row in disaggregated if row.plan.kind == kind]
            axis.plot([row.plan.ratio for row in points], [row.goodput_per_s for row in points], marker="o", label=kind)
        axis.set(title=title, xlabel="prefill : decode workers", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("goodput, requests/s")
    axes[0, 0].legend()
    figure.savefig(path, dpi=_DPI)
    pyplot.close(figure)
