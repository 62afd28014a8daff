"""Samples as markdown tables."""

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from benchmarks.http_load import HttpSample
from benchmarks.machine import CORES, cpu_model
from benchmarks.points import HttpPoint, RpcPoint
from benchmarks.prompt import Prompt
from benchmarks.rpc_load import RpcSample
from benchmarks.stack import AGGREGATED, OUTPUT_TOKENS
from benchmarks.suite import Results

BEGIN = "<!-- made by scripts/bench --write -->"
END = "<!-- end -->"
FOREIGN_MAX_PERCENT = 10.0

S = TypeVar("S", HttpSample, RpcSample)
P = TypeVar("P", HttpPoint, RpcPoint)


@dataclass(frozen=True, slots=True)
class Column(Generic[S]):
    """One figure; of several repetitions the median is shown."""

    title: str
    value: Callable[[S], float]
    digits: int = 1
    fold: Callable[[Sequence[float]], float] = statistics.median


_HTTP_COLUMNS: Sequence[Column[HttpSample]] = (
    Column("frontend CPU µs/token", lambda s: 1e6 * s.frontend_cpu_s / s.tokens),
    Column("frontend CPU µs/request", lambda s: 1e6 * s.frontend_cpu_s / s.requests, 0),
    Column("worker CPU µs/token", lambda s: 1e6 * s.worker_cpu_s / s.tokens),
    Column("TTFT p50 ms", lambda s: s.ttft_p50_ms, 2),
    Column("TTFT p99 ms", lambda s: s.ttft_p99_ms, 2),
    Column("req/s", lambda s: s.requests / s.elapsed_s, 0),
    Column("events/token", lambda s: s.events / s.tokens, 3),
    Column("frontend PSS MiB", lambda s: s.frontend_pss_mib, 0),
    Column("client CPU µs/token", lambda s: 1e6 * s.client_cpu_s / s.tokens),
    Column("foreign CPU %", lambda s: s.foreign_percent, 0, max),
)
_RPC_COLUMNS: Sequence[Column[RpcSample]] = (
    Column("calls/s", lambda s: s.calls / s.elapsed_s, 0),
    Column("server CPU µs/call", lambda s: 1e6 * s.server_cpu_s / s.calls),
    Column("client CPU µs/call", lambda s: 1e6 * s.client_cpu_s / s.calls),
    Column("foreign CPU %", lambda s: s.foreign_percent, 0, max),
)


def render(results: Results, prompt: Prompt, repetitions: int) -> str:
    """All tables under their caption."""
    caption = (
        f"{CORES} cores of {cpu_model()}, Python {platform.python_version()}; {len(AGGREGATED)} mock workers, prompts "
        f"of {prompt.tokens} tokens, answers of {OUTPUT_TOKENS}; medians of {repetitions}, foreign CPU the highest."
    )
    tables = [_table(results.http, _HTTP_COLUMNS), _table(results.rpc, _RPC_COLUMNS)]
    return "\n\n".join([caption, *filter(None, tables)])


def problems(results: Results) -> list[str]:
    """What makes figures wrong."""
    return [
        f"{point.name}: {count} times: {error}"
        for point, samples in results.http.items()
        for sample in samples
        for error, count in sample.errors.items()
    ]


def doubts(results: Results) -> list[str]:
    """What makes figures doubtful."""
    foreign = {point.name: max(s.foreign_percent for s in samples) for point, samples in results.http.items()}
    foreign |= {point.name: max(s.foreign_percent for s in samples) for point, samples in results.rpc.items()}
    return [
        f"{name}: other programs took {percent:.0f} % of the machine"
        for name, percent in foreign.items()
        if percent > FOREIGN_MAX_PERCENT
    ]


def write(document: Path, text: str) -> None:
    """Puts `text` between the two marks; ValueError when the document does not have them."""
    before, begin, rest = document.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} lacks {BEGIN} or {END}")
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def _table(rows: Mapping[P, Sequence[S]], columns: Sequence[Column[S]]) -> str:
    if not rows:
        return ""
    lines = [f"| | {' | '.join(column.title for column in columns)} |", "|---" + "|--:" * len(columns) + "|"]
    for point, samples in rows.items():
        cells = [f"{c.fold([c.value(s) for s in samples]):,.{c.digits}f}" for c in columns]
        lines.append(f"| {point.name} | {' | '.join(cells)} |")
    return "\n".join(lines)
