"""What came of the planner's live benchmark."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.open_loop import Shot
from benchmarks.planner_live_plan import LivePlan
from dynamo.simulator.report import percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The workers at one moment."""

    at_s: float
    desired: int
    ready: int
    held: int  # those that start or drain too: what has to be paid


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All that was measured."""

    plan: LivePlan
    shots: Sequence[Shot]
    samples: Sequence[Sample]

    @property
    def failed(self) -> Sequence[Shot]:
        """Those without a whole answer."""
        return [shot for shot in self.shots if _has_failed(shot)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of the time."""

    name: str
    start_s: float
    end_s: float


def phases(plan: LivePlan) -> Iterator[Phase]:
    """The load's, one after the other."""
    start_s = 0.0
    for name, seconds in (
        ("low", plan.low_s),
        ("rise", plan.ramp_s),
        ("high", plan.high_s),
        ("fall", plan.ramp_s),
        ("low again", plan.after_s),
    ):
        yield Phase(name=name, start_s=start_s, end_s=start_s + seconds)
        start_s += seconds


def table(result: Result) -> str:
    """Markdown."""
    target_s = result.plan.ttft_ms / 1000
    head = "| | s | requests/s | workers, mean | at its end | TTFT p50 | TTFT p99 "
    lines = [f"{head}| within {target_s:g} s | failed |", "|---" + "|--:" * 8 + "|"]
    whole = Phase(name="all", start_s=0.0, end_s=result.plan.seconds)
    for phase in (*phases(result.plan), whole):
        shots = [shot for shot in result.shots if phase.start_s <= shot.at_s < phase.end_s]
        samples = [sample for sample in result.samples if phase.start_s <= sample.at_s < phase.end_s]
        ttft_s = sorted(shot.ttft_s for shot in shots if shot.ttft_s is not None)
        failed = sum(map(_has_failed, shots))
        lines.append(
            f"| {phase.name} | {phase.end_s - phase.start_s:.0f} | {len(shots) / (phase.end_s - phase.start_s):.1f} "
            f"| {_mean([sample.held for sample in samples]):.1f} | {samples[-1].ready if samples else 0} "
            f"| {_percentile(ttft_s, 50):.2f} s | {_percentile(ttft_s, 99):.2f} s "
            f"| {_mean([s <= target_s for s in ttft_s]):.0%} | {failed} |"
        )
    return "\n".join(lines)


def _has_failed(shot: Shot) -> bool:
    return shot.status != 200 or not shot.whole or shot.ttft_s is None


def _percentile(ascending: Sequence[float], percent: float) -> float:
    return percentile(ascending, percent) if ascending else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
