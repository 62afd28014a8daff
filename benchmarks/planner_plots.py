"""Load, workers and TTFT over time as a PNG picture. Needs matplotlib (extra `plot`)."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot

from benchmarks.planner_loads import Load
from benchmarks.planner_policies import Compared
from dynamo.simulator.report import percentile

_INCHES = (9.0, 8.0)
_DPI = 80
_POINTS = 180  # over the time of a load


def draw(load: Load, rows: Sequence[Compared], path: Path) -> None:
    """Three panels: arrivals per second; GPUs held, a line a policy; the TTFT that nine in ten do not exceed."""
    mpl.use("Agg")  # no display
    width_s = load.duration_s / _POINTS
    times_s = [(point + 0.5) * width_s for point in range(_POINTS)]
    figure, (arrivals, gpus, ttft) = pyplot.subplots(3, 1, figsize=_INCHES, sharex=True, layout="constrained")
    arrivals.plot(times_s, load.rates(width_s)[:_POINTS], color="grey")
    for row in rows:
        gpus.plot(times_s, _gpus_held(row, times_s), label=row.policy.value, drawstyle="steps-mid", linewidth=1.2)
        ttft.plot(times_s, _ttft_p90_s(row, width_s), label=row.policy.value, linewidth=1.0)
    ttft.axhline(load.targets.ttft_s, color="black", linestyle="--", linewidth=1.0)
    arrivals.set(title=load.title, ylabel="arrivals/s", ylim=(0, None))
    gpus.set(ylabel="GPUs held", ylim=(0, None))
    ttft.set(ylabel="TTFT p90, s", xlabel="s", yscale="log")
    gpus.legend(fontsize="small", ncols=4)
    for axis in (arrivals, gpus, ttft):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=_DPI)
    pyplot.close(figure)


def _gpus_held(row: Compared, times_s: Sequence[float]) -> list[int]:
    spans_s = [span for spans in row.outcome.record.spans_s.values() for span in spans]
    return [sum(begin_s <= time_s < end_s for begin_s, end_s in spans_s) for time_s in times_s]


def _ttft_p90_s(row: Compared, width_s: float) -> list[float]:
    """By arrival; not a number where nothing arrived."""
    found: list[list[float]] = [[] for _ in range(_POINTS)]
    for request in row.outcome.record.requests:
        if request.finished:
            found[min(int(request.arrival_s / width_s), _POINTS - 1)].append(request.ttft_s)
    return [percentile(sorted(times_s), 90) if times_s else float("nan") for times_s in found]
