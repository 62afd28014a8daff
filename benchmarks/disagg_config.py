"""What benchmarks/disagg.py compares, and what it asks of the fleets."""

from dataclasses import dataclass
from enum import StrEnum

from benchmarks.goodput import Targets
from dynamo.config import option
from dynamo.engines.mocker.timing import TimingModel
from dynamo.engines.mocker.transfer_model import TransferModel
from dynamo.errors import ConfigError
from dynamo.router.disagg import DisaggConfig, DisaggPolicy

PREFILL_CHUNK_TOKENS = 8192  # of prefill workers: no tokens wait there for a chunk to end


class WorkloadName(StrEnum):
    """What the fleets are asked."""

    SHORT_IN = "short-in"  # and long out
    LONG_IN = "long-in"  # and short out
    TRACE = "trace"


@dataclass(frozen=True, slots=True, kw_only=True)
class DisaggBenchConfig:
    """Compare aggregated and disaggregated fleets of the same size."""

    workload: str | None = option(
        None, flag="--workload", choices=tuple(WorkloadName), help="only this one (default: all that there are)"
    )
    workers: int = option(8, flag="--workers", minimum=2, help="of a fleet, all kinds together")
    ttft_s: float | None = option(
        None, flag="--ttft", metavar="SECONDS", minimum=0, help="target of each request (default: the workload's own)"
    )
    itl_s: float | None = option(
        None,
        flag="--itl",
        metavar="SECONDS",
        minimum=0,
        help="target of each request, mean of its tokens (default: the workload's own)",
    )
    duration_s: float | None = option(
        None, flag="--duration", metavar="SECONDS", minimum=0, help="of the arrivals (default: the workload's own)"
    )
    warm_up_s: float = option(
        10.0, flag="--warm-up", metavar="SECONDS", minimum=0, help="what arrives before is not judged"
    )
    kv_tokens: int = option(448_000, flag="--kv-tokens", minimum=1, help="that a worker's KV cache holds")
    chunks: str = option(
        "512,2048,8192",
        flag="--chunks",
        metavar="TOKENS[,TOKENS...]",
        help="--max-num-batched-tokens of aggregated workers; the best one is what decode workers have too",
    )
    bandwidth_gb_s: float = option(
        TransferModel().bandwidth_gb_s,
        flag="--transfer-bandwidth",
        metavar="GB/S",
        minimum=0,
        help="of a worker's link; 0: transfers take no time",
    )
    thresholds: bool = option(
        False, flag="--thresholds", help="look for the best thresholds of conditional disaggregation too"
    )
    seed: int = option(0, flag="--seed", help="decides all that is left to chance")
    max_local_prefill_length: int = option(
        2048, flag="--max-local-prefill-length", minimum=0, help="of the conditional fleets, as of the frontend"
    )
    max_local_prefill_ratio: float = option(
        0.5,
        flag="--max-local-prefill-ratio",
        minimum=0,
        maximum=1,
        help="of the conditional fleets, as of the frontend",
    )
    max_prefill_queue_tokens: int | None = option(
        None,
        flag="--max-prefill-queue-tokens",
        minimum=0,
        help="of the conditional fleets, as of the frontend (default: what a worker prefills within the TTFT target)",
    )

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be simulated."""
        self.chunk_sizes()

    def chunk_sizes(self) -> list[int]:
        """At least one."""
        try:
            return [int(size) for size in self.chunks.split(",")]
        except ValueError:
            raise ConfigError(f"--chunks must be whole numbers with commas between, not {self.chunks!r}") from None

    def conditional(self, targets: Targets) -> DisaggConfig:
        """How the conditional fleets decide."""
        queue_tokens = self.max_prefill_queue_tokens
        return DisaggConfig(
            conditional_disagg=True,
            disagg_policy=DisaggPolicy.EITHER.value,
            max_local_prefill_length=self.max_local_prefill_length,
            max_local_prefill_ratio=self.max_local_prefill_ratio,
            max_prefill_queue_tokens=prefill_tokens(targets.ttft_s) if queue_tokens is None else queue_tokens,
        )

    def targets(self, own: Targets) -> Targets:
        """Those of a workload, as far as they are not set."""
        return Targets(
            ttft_s=own.ttft_s if self.ttft_s is None else self.ttft_s,
            tpot_s=own.tpot_s if self.itl_s is None else self.itl_s,
        )


def prefill_tokens(time_s: float) -> int:
    """How many a worker computes in that time that does nothing else, in full steps."""
    step_s = TimingModel().step_s(new_tokens=PREFILL_CHUNK_TOKENS, decoding=False, usage=0)
    return round(time_s / step_s * PREFILL_CHUNK_TOKENS)
