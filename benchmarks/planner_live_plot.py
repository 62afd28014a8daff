"""The planner's live benchmark as a PNG picture. Needs matplotlib (extra `plot`)."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot

from benchmarks.planner_live_report import Result
from dynamo.simulator.report import percentile

_INCHES = (10.0, 8.0)
_DPI = 110
_BIN_S = 2.0


def draw(result: Result, path: Path) -> None:
    """Load, workers and TTFT over the same time."""
    mpl.use("Agg")  # no display
    figure, (load, workers, ttft) = pyplot.subplots(3, 1, figsize=_INCHES, sharex=True, layout="constrained")
    figure.suptitle("dynamo serve --engine mocker --planner: real processes under a load that rises 5x and falls back")
    bins = [_BIN_S * (number + 0.5) for number in range(int(result.plan.seconds / _BIN_S))]
    load.plot(bins, [len(ttfts) / _BIN_S for ttfts in _binned(result)], drawstyle="steps-mid", label="arrived")
    edges_s, rates = [0.0], []
    for stretch in result.plan.stretches():
        edges_s.append(edges_s[-1] + stretch.seconds)
        rates.append(stretch.rate_per_s)
    load.stairs(rates, edges_s, color="grey", linestyle="--", label="meant")
    load.set(ylabel="requests/s")
    at_s = [sample.at_s for sample in result.samples]
    workers.step(at_s, [sample.held for sample in result.samples], where="post", label="with those that start or drain")
    workers.step(at_s, [sample.ready for sample in result.samples], where="post", label="ready")
    workers.set(ylabel="workers")
    for percent in (50, 99):
        values = [percentile(sorted(ttfts), percent) if ttfts else float("nan") for ttfts in _binned(result)]
        ttft.plot(bins, values, marker=".", label=f"p{percent} of {_BIN_S:g} s")
    ttft.axhline(result.plan.ttft_ms / 1000, color="grey", linestyle="--", label="target")
    ttft.set(ylabel="TTFT, s", xlabel="s", yscale="log")
    for axis in (load, workers, ttft):
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=None if axis is ttft else 0)
        axis.legend()
    figure.savefig(path, dpi=_DPI)
    pyplot.close(figure)


def _binned(result: Result) -> Sequence[Sequence[float]]:
    """The TTFTs of the requests of each bin."""
    bins: list[list[float]] = [[] for _ in range(int(result.plan.seconds / _BIN_S))]
    for shot in result.shots:
        number = int(shot.at_s / _BIN_S)
        if number < len(bins) and shot.ttft_s is not None:
            bins[number].append(shot.ttft_s)
    return bins
