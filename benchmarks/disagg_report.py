"""Goodput as tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.disagg_fleets import FleetPlan
from benchmarks.goodput import Outcome, Targets
from dynamo.router.disagg import DisaggConfig
from dynamo.simulator.report import percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the search has found for one fleet."""

    plan: FleetPlan
    targets: Targets
    outcome: Outcome | None  # at the highest rate at which enough requests met the targets; None: at none

    @property
    def goodput_per_s(self) -> float:
        return self.outcome.goodput_per_s(self.targets) if self.outcome is not None else 0.0


_OUTCOME_COLUMNS: Sequence[tuple[str, Callable[[Outcome], str]]] = (
    ("at req/s", lambda o: f"{o.rate_per_s:.1f}"),
    ("TTFT p50 s", lambda o: f"{percentile(sorted(o.ttft_s), 50):.3f}"),
    ("p90", lambda o: f"{percentile(sorted(o.ttft_s), 90):.3f}"),
    ("ITL of a request p50 ms", lambda o: f"{1000 * percentile(sorted(o.tpot_s), 50):.1f}"),
    ("p90", lambda o: f"{1000 * percentile(sorted(o.tpot_s), 90):.1f}"),
    ("of all tokens p99", lambda o: f"{1000 * o.gap_p99_s:.1f}"),
    ("hit %", lambda o: f"{100 * o.hit_ratio:.1f}"),
    ("prefilled by decode workers %", lambda o: f"{100 * o.local_share:.0f}"),
)


def goodput_table(rows: Sequence[Row], against: Row) -> str:
    """A fleet a row; `against`: the one that all are compared with."""
    titles = ["fleet", "P:D", "chunk", "goodput", "against the best aggregated", *(t for t, _ in _OUTCOME_COLUMNS)]
    lines = [_line(titles), "|---" + "|--:" * (len(titles) - 1) + "|"]
    for row in rows:
        ratio = f"{row.goodput_per_s / against.goodput_per_s:.2f}" if against.goodput_per_s else "-"
        cells = [row.plan.kind, row.plan.ratio, str(row.plan.chunk_tokens), f"{row.goodput_per_s:.2f}", ratio]
        cells += [text(row.outcome) if row.outcome is not None else "-" for _, text in _OUTCOME_COLUMNS]
        lines.append(_line(cells))
    return "\n".join(lines)


def threshold_table(rows: Sequence[Row]) -> str:
    """Goodput over the thresholds of conditional disaggregation, in tokens."""
    found = {(_length_text(row.plan.disagg), row.plan.disagg.max_prefill_queue_tokens): row for row in rows}
    lengths, queues = dict.fromkeys(length for length, _ in found), dict.fromkeys(queue for _, queue in found)
    lines = [_line(["stays if not cached are", *(f"or {queue} are queued" for queue in queues)])]
    lines.append("|---" + "|--:" * len(queues) + "|")
    lines += [_line([length, *(f"{found[length, queue].goodput_per_s:.2f}" for queue in queues)]) for length in lengths]
    return "\n".join(lines)


def _length_text(config: DisaggConfig) -> str:
    if not config.max_local_prefill_length:
        return "-"
    return f"< {config.max_local_prefill_length}, <= {config.max_local_prefill_ratio:.0%}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
