"""Curves as PNG pictures. The only module that needs matplotlib (extra `plot`)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot

from benchmarks.router_capacity import TTFT_P90_S_MAX
from benchmarks.router_runs import Curve
from dynamo.simulator.modes import SimulatedMode
from dynamo.simulator.report import Summary

_INCHES = (12.0, 7.5)
_DPI = 110

_PANELS: Sequence[tuple[str, Callable[[Summary], float], bool]] = (  # title, figure, whether on a logarithmic scale
    ("TTFT p90, s", lambda s: s.ttft_p90_s, True),
    ("TTFT mean, s", lambda s: s.ttft_mean_s, True),
    ("hit ratio, %", lambda s: 100 * s.hit_ratio, False),
    ("ITL mean, ms", lambda s: 1000 * s.itl_mean_s, False),
    ("end to end, mean, s", lambda s: s.latency_mean_s, True),
    ("requests per worker, max/mean", lambda s: s.requests_spread, False),
)


def draw_curves(curves: Mapping[SimulatedMode, Curve], bound: float, title: str, path: Path) -> None:
    """One panel for each figure over the request rate, one line for each mode; `bound`: the best hit ratio."""
    mpl.use("Agg")  # no display
    figure, axes = pyplot.subplots(2, 3, figsize=_INCHES, layout="constrained")
    figure.suptitle(title)
    for axis, (name, value, logarithmic) in zip(axes.flat, _PANELS, strict=True):
        for mode, curve in curves.items():
            rates = sorted(curve)
            axis.plot(rates, [value(curve[rate]) for rate in rates], marker=".", label=mode.value)
        axis.set(title=name, xlabel="requests/s", yscale="log" if logarithmic else "linear")
        axis.grid(alpha=0.3)
    axes[0, 0].axhline(TTFT_P90_S_MAX, color="grey", linestyle="--")
    axes[0, 2].axhline(100 * bound, color="grey", linestyle="--")
    axes[0, 0].legend()
    figure.savefig(path, dpi=_DPI)
    pyplot.close(figure)
