"""What the fleets are asked: how long prompts and answers are, and how soon the answers are wanted."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.disagg_config import WorkloadName
from benchmarks.goodput import Targets
from dynamo.errors import ConfigError
from dynamo.simulator.trace import BLOCK_SIZE, TraceRequest, read_trace

_SPREAD = 0.5  # sigma of the lognormal lengths: one in ten is 1.7 times the mean, or more
_SYNTHETIC_BLOCK_SIZE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """`requests(n)`: the first n of always the same, or as many as there are; they are picklable functions."""

    title: str
    requests: Callable[[int], Sequence[TraceRequest]]
    block_size: int  # tokens
    targets: Targets
    start_per_s: float  # where the search begins
    duration_s: float  # of the arrivals


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Lengths around these means; no prompt has anything in common with another."""

    prompt_tokens: int
    output_tokens: int
    seed: int

    def __call__(self, count: int) -> list[TraceRequest]:
        rng = random.Random(self.seed)  # noqa: S311
        requests: list[TraceRequest] = []
        blocks = 0
        for _ in range(count):
            prompt_tokens, output_tokens = _length(self.prompt_tokens, rng), _length(self.output_tokens, rng)
            first, blocks = blocks, blocks - (-prompt_tokens // _SYNTHETIC_BLOCK_SIZE)
            requests.append(
                TraceRequest(
                    arrival_s=0.0,
                    prompt_tokens=prompt_tokens,
                    output_tokens=output_tokens,
                    block_ids=tuple(range(first, blocks)),
                )
            )
        return requests


@dataclass(frozen=True, slots=True)
class Recorded:
    """The requests of a trace in their order."""

    path: Path

    def __call__(self, count: int) -> list[TraceRequest]:
        return read_trace(self.path, limit=count)


def make_workload(name: WorkloadName, trace: Path | None, seed: int) -> Workload:
    """Raises ConfigError for TRACE without a trace, or with a file that is none."""
    match name:
        case WorkloadName.SHORT_IN:
            return Workload(
                title="256 in, 512 out",
                requests=Lognormal(256, 512, seed),
                block_size=_SYNTHETIC_BLOCK_SIZE,
                targets=Targets(ttft_s=0.25, tpot_s=0.015),
                start_per_s=100,
                duration_s=20,
            )
        case WorkloadName.LONG_IN:
            return Workload(
                title="8000 in, 64 out",
                requests=Lognormal(8000, 64, seed),
                block_size=_SYNTHETIC_BLOCK_SIZE,
                targets=Targets(ttft_s=0.5, tpot_s=0.015),
                start_per_s=20,
                duration_s=60,
            )
        case WorkloadName.TRACE:
            if trace is None:
                raise ConfigError("name a file in Mooncake's format")
            read_trace(trace)  # now, and not after the minutes that other workloads take
            return Workload(
                title=trace.stem,
                requests=Recorded(trace),
                block_size=BLOCK_SIZE,
                targets=Targets(ttft_s=2.0, tpot_s=0.025),
                start_per_s=7,
                duration_s=120,
            )


def _length(mean: int, rng: random.Random) -> int:
    return max(1, round(rng.lognormvariate(math.log(mean) - _SPREAD**2 / 2, _SPREAD)))
