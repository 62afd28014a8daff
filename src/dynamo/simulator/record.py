"""What is noted down while a simulation runs."""

from collections import Counter
from dataclasses import dataclass, field

from dynamo.protocols.disagg import PrefillReason
from dynamo.protocols.kv_events import Tier


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """The life of one request. Times are seconds of virtual time."""

    request_id: int
    arrival_s: float
    prompt_tokens: int
    worker: int = -1  # none yet
    prefill: PrefillReason | None = None  # why it was prefilled where it was; None: nobody had a choice
    placed_s: float = 0.0  # when the router had decided
    cached_tokens: int = 0  # of the prompt
    output_tokens: int = 0  # so far
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    finished: bool = False

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        """Time per output token: the mean time between two tokens; 0 where there is one."""
        gaps = self.output_tokens - 1
        return (self.last_token_s - self.first_token_s) / gaps if gaps else 0.0

    @property
    def latency_s(self) -> float:
        """From the arrival to the last token."""
        return self.last_token_s - self.arrival_s


@dataclass(slots=True)
class TokenGaps:
    """How often each time between two tokens of one request occurred, to the microsecond."""

    counts: Counter[int] = field(default_factory=Counter)  # by microseconds

    def add(self, gap_s: float, times: int = 1) -> None:
        self.counts[round(gap_s * 1e6)] += times

    def mean_s(self) -> float:
        """0 when there are none."""
        total = self.counts.total()
        return sum(gap_us * times for gap_us, times in self.counts.items()) / total / 1e6 if total else 0.0

    def percentile_s(self, percent: float) -> float:
        """The smallest gap that at least `percent` of all do not exceed; 0 when there are none."""
        wanted = self.counts.total() * percent / 100
        reached = 0
        for gap_us in sorted(self.counts):
            reached += self.counts[gap_us]
            if reached >= wanted:
                return gap_us / 1e6
        return 0.0


@dataclass(slots=True, kw_only=True)
class RunRecord:
    """All of one run."""

    workers: int
    requests: list[RequestRecord]
    gaps: TokenGaps = field(default_factory=TokenGaps)
    preemptions: int = 0
    reused_blocks: dict[Tier, int] = field(default_factory=lambda: dict.fromkeys(Tier, 0))  # by where they were found
