"""What is measured: the rows of the table."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Pace(Enum):
    """How fast the simulated engine makes tokens, as its --speedup-ratio."""

    BURST = 1_000_000.0  # tokens cost nothing to make: what the stack itself can do
    PACED = 1.0  # as an engine would: small batches, idle time in between


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPoint:
    """Streamed chat completions."""

    pace: Pace
    concurrency: int

    @property
    def name(self) -> str:
        return f"{self.pace.name.lower()} c={self.concurrency}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcPoint:
    """Calls by the Python API."""

    items: int  # of each reply
    concurrency: int

    @property
    def name(self) -> str:
        return f"rpc items={self.items} c={self.concurrency}"


Point = HttpPoint | RpcPoint

POINTS: Sequence[Point] = (
    *(HttpPoint(pace=Pace.BURST, concurrency=c) for c in (1, 16, 64, 256)),
    *(HttpPoint(pace=Pace.PACED, concurrency=c) for c in (64, 256)),
    *(RpcPoint(items=items, concurrency=64) for items in (1, 10)),
)
