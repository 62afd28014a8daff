"""Attainment against GPU time as a table."""

import math
from collections.abc import Sequence

from benchmarks.planner_policies import Compared, Policy

_TITLES = (
    "fleet",
    "in time %",
    "of static-peak's",
    "GPU-hours",
    "of static-peak's",
    "of the oracle's",
    "TTFT p50 s",
    "p99",
    "ITL of a request p99 ms",
    "most workers",
    "actions",
    "recovery s",
)


def table(rows: Sequence[Compared]) -> str:
    """A policy a row. Ratios need those to which they refer among the rows."""
    by_policy = {row.policy: row for row in rows}
    peak, oracle = by_policy.get(Policy.STATIC_PEAK), by_policy.get(Policy.ORACLE)
    lines = [_line(_TITLES), "|---" + "|--:" * (len(_TITLES) - 1) + "|"]
    lines += [_line(_cells(row, peak, oracle)) for row in rows]
    return "\n".join(lines)


def most_workers(row: Compared) -> int:
    """That held GPUs at once."""
    spans_s = [span for spans in row.outcome.record.spans_s.values() for span in spans]
    changes = sorted([(end_s, -1) for _, end_s in spans_s] + [(begin_s, 1) for begin_s, _ in spans_s])
    most = held = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def _cells(row: Compared, peak: Compared | None, oracle: Compared | None) -> Sequence[str]:
    outcome = row.outcome
    return (
        row.policy.value,
        f"{100 * outcome.attainment:.1f}",
        _percent(outcome.attainment, peak.outcome.attainment) if peak else "-",
        f"{outcome.gpu_hours:.2f}",
        _percent(outcome.gpu_hours, peak.outcome.gpu_hours) if peak else "-",
        _percent(outcome.gpu_hours, oracle.outcome.gpu_hours) if oracle else "-",
        f"{outcome.ttft_s(50):.2f}",
        f"{outcome.ttft_s(99):.2f}",
        f"{1000 * outcome.itl_s(99):.0f}",
        str(most_workers(row)),
        str(outcome.record.actions),
        _recovery(outcome.recovery_s),
    )


def _percent(value: float, base: float) -> str:
    return f"{100 * value / base:.0f} %" if base else "-"


def _recovery(recovery_s: float | None) -> str:
    if recovery_s is None:
        return "-"
    return "never" if math.isinf(recovery_s) else f"{recovery_s:.0f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
