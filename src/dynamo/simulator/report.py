"""The figures of a run, and tables of them."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dynamo.protocols.kv_events import Tier
from dynamo.simulator.record import RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What came out of one run. Times are seconds of virtual time.

    A spread is the most that any worker got over the mean of all: 1 is even.
    """

    mode: str
    workers: int
    requests: int
    rate_per_s: float  # of arrivals
    completed_per_s: float
    hit_ratio: float  # cached prompt tokens over all prompt tokens
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    itl_mean_s: float
    itl_p99_s: float
    latency_mean_s: float  # from the arrival to the last token
    latency_p99_s: float
    requests_spread: float
    prefill_spread: float  # of prompt tokens that were not cached
    device_blocks: int = 0  # that were used again, and from where
    host_blocks: int = 0
    disk_blocks: int = 0


def summarize(record: RunRecord, mode: str) -> Summary:
    """Raises ValueError when a request was lost: no figure of such a run means anything."""
    requests = record.requests
    lost = [request.request_id for request in requests if not request.finished]
    if lost:
        raise ValueError(f"{len(lost)} requests never ended, the first of them {lost[0]}")
    begin_s, end_s = requests[0].arrival_s, max(request.last_token_s for request in requests)
    ttft_s = sorted(request.ttft_s for request in requests)
    latency_s = sorted(request.latency_s for request in requests)
    prompt_tokens = sum(request.prompt_tokens for request in requests)
    placed, prefilled = Counter[int](), Counter[int]()
    for request in requests:
        placed[request.worker] += 1
        prefilled[request.worker] += request.prompt_tokens - request.cached_tokens
    return Summary(
        mode=mode,
        workers=record.workers,
        requests=len(requests),
        rate_per_s=_rate(len(requests), requests[-1].arrival_s - begin_s),
        completed_per_s=_rate(len(requests), end_s - begin_s),
        hit_ratio=sum(request.cached_tokens for request in requests) / prompt_tokens,
        ttft_mean_s=sum(ttft_s) / len(ttft_s),
        ttft_p50_s=percentile(ttft_s, 50),
        ttft_p90_s=percentile(ttft_s, 90),
        ttft_p99_s=percentile(ttft_s, 99),
        itl_mean_s=record.gaps.mean_s(),
        itl_p99_s=record.gaps.percentile_s(99),
        latency_mean_s=sum(latency_s) / len(latency_s),
        latency_p99_s=percentile(latency_s, 99),
        requests_spread=_spread(placed, record.workers),
        prefill_spread=_spread(prefilled, record.workers),
        device_blocks=record.reused_blocks[Tier.DEVICE],
        host_blocks=record.reused_blocks[Tier.HOST],
        disk_blocks=record.reused_blocks[Tier.DISK],
    )


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest of these values (at least one, sorted) that at least `percent` of them do not exceed."""
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a table."""

    title: str
    text: Callable[[Summary], str]


COLUMNS: tuple[Column, ...] = (
    Column("router", lambda s: s.mode),
    Column("workers", lambda s: str(s.workers)),
    Column("req/s", lambda s: f"{s.rate_per_s:.1f}"),
    Column("hit %", lambda s: f"{100 * s.hit_ratio:.2f}"),
    Column("TTFT mean s", lambda s: f"{s.ttft_mean_s:.3f}"),
    Column("p50", lambda s: f"{s.ttft_p50_s:.3f}"),
    Column("p90", lambda s: f"{s.ttft_p90_s:.3f}"),
    Column("p99", lambda s: f"{s.ttft_p99_s:.3f}"),
    Column("ITL mean ms", lambda s: f"{1000 * s.itl_mean_s:.1f}"),
    Column("p99", lambda s: f"{1000 * s.itl_p99_s:.1f}"),
    Column("end to end mean s", lambda s: f"{s.latency_mean_s:.2f}"),
    Column("p99", lambda s: f"{s.latency_p99_s:.2f}"),
    Column("requests max/mean", lambda s: f"{s.requests_spread:.2f}"),
    Column("prefill max/mean", lambda s: f"{s.prefill_spread:.2f}"),
    Column("done/s", lambda s: f"{s.completed_per_s:.1f}"),
)

TIER_COLUMNS: tuple[Column, ...] = (
    Column("blocks from device", lambda s: str(s.device_blocks)),
    Column("from host", lambda s: str(s.host_blocks)),
    Column("from disk", lambda s: str(s.disk_blocks)),
)


def table(summaries: Iterable[Summary], columns: Sequence[Column] = COLUMNS) -> str:
    """A markdown table, one run a row, its columns aligned for a terminal too."""
    rows = [[column.text(summary) for column in columns] for summary in summaries]
    cells = [[column.title for column in columns], *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    rule = ["-" * (widths[0] + 2), *(f"{'-' * (width + 1)}:" for width in widths[1:])]
    lines = [_line(cells[0], widths), f"|{'|'.join(rule)}|", *(_line(row, widths) for row in rows)]
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
    return f"| {' | '.join([first.strip().ljust(widths[0]), *others])} |"


def _spread(counts: Counter[int], workers: int) -> float:
    total = counts.total()
    return max(counts.values()) * workers / total if total else 1.0


def _rate(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else math.inf
