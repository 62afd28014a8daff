"""What the planner's live benchmark asks of whom."""

from collections.abc import Sequence
from dataclasses import dataclass

PROMPT_TOKENS = 256
OUTPUT_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """So many requests per second, for so long."""

    seconds: float
    rate_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePlan:
    """A load that rises and falls back, and a deployment whose planner has to follow it.

    A worker is a mocker that has been slowed down so far, and given so few sequences, that five of them are saturated
    by what one CPU can simulate.
    """

    low_per_s: float = 4.0
    high_per_s: float = 20.0
    low_s: float = 20.0  # before the rise
    ramp_s: float = 20.0  # of the rise, and of the fall
    high_s: float = 40.0
    after_s: float = 50.0
    ramp_steps: int = 5
    ttft_ms: float = 500.0
    itl_ms: float = 70.0
    max_workers: int = 8
    interval_s: float = 1.0
    throughput_interval_s: float = 5.0
    scale_down_delay_s: float = 5.0
    speedup: float = 0.25
    max_num_seqs: int = 8
    startup_s: float = 2.0  # that a worker pretends to need to load its model
    patience_s: float = 60.0  # after the last arrival
    seed: int = 1

    def stretches(self) -> Sequence[Stretch]:
        """The load, from its start to its end."""
        steps = [
            Stretch(
                seconds=self.ramp_s / self.ramp_steps,
                rate_per_s=self.low_per_s + (self.high_per_s - self.low_per_s) * (step + 0.5) / self.ramp_steps,
            )
            for step in range(self.ramp_steps)
        ]
        return [
            Stretch(seconds=self.low_s, rate_per_s=self.low_per_s),
            *steps,
            Stretch(seconds=self.high_s, rate_per_s=self.high_per_s),
            *reversed(steps),
            Stretch(seconds=self.after_s, rate_per_s=self.low_per_s),
        ]

    @property
    def seconds(self) -> float:
        return sum(stretch.seconds for stretch in self.stretches())

    def serve_flags(self) -> list[str]:
        """Of `dynamo serve`, and after -- those of its workers."""
        return [
            *("--engine", "mocker", "--workers", "1", "--http-port", "0", "--no-access-log", "--planner"),
            *("--ttft-ms", f"{self.ttft_ms:g}", "--itl-ms", f"{self.itl_ms:g}"),
            *("--max-workers", str(self.max_workers), "--interval-s", f"{self.interval_s:g}"),
            *("--throughput-interval-s", f"{self.throughput_interval_s:g}"),
            *("--scale-down-delay-s", f"{self.scale_down_delay_s:g}"),
            "--",
            *("--speedup-ratio", f"{self.speedup:g}", "--max-num-seqs", str(self.max_num_seqs)),
            *("--startup-time", f"{self.startup_s:g}", "--max-model-len", "8192"),
        ]
