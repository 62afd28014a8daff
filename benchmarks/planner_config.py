"""What benchmarks/planner.py simulates."""

from collections.abc import Sequence
from dataclasses import dataclass

from dynamo.config import option
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.transfer_model import TransferModel
from dynamo.planner.config import PREDICTORS
from dynamo.simulator.trace import TraceRequest, longest_context

_BLOCK_SIZE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerBenchConfig:
    """Fleets that follow the load, or don't: how many requests are answered in time, and for how much GPU time."""

    disaggregated: bool = option(False, flag="--disaggregated", help="prefill and decode workers")
    policies: str | None = option(
        None, flag="--policies", metavar="NAME[,NAME...]", help="only these (default: all that there are)"
    )
    predictor: str = option("constant", flag="--predictor", choices=PREDICTORS, help="as the planner's, like the next")
    interval_s: float = option(
        5.0, flag="--interval-s", metavar="SECONDS", minimum=0.01, help="between two looks at the load"
    )
    throughput_interval_s: float = option(
        60.0, flag="--throughput-interval-s", metavar="SECONDS", minimum=0.01, help="between two forecasts"
    )
    scale_down_delay_s: float = option(
        60.0,
        flag="--scale-down-delay-s",
        metavar="SECONDS",
        minimum=0,
        help="for how long fewer workers must have been enough",
    )
    ttft_s: float | None = option(
        None, flag="--ttft", metavar="SECONDS", minimum=0, help="target of each request (default: the load's own)"
    )
    itl_s: float | None = option(
        None,
        flag="--itl",
        metavar="SECONDS",
        minimum=0,
        help="target of each request, mean of its tokens (default: the load's own)",
    )
    start_up_s: float | None = option(
        None, flag="--start-up", metavar="SECONDS", minimum=0.01, help="of a worker (default: the load's own)"
    )
    start_up_jitter: float = option(
        0.1, flag="--start-up-jitter", minimum=0, maximum=1, help="the share by which it may be shorter or longer"
    )
    scale: float = option(1.0, flag="--scale", minimum=0.001, help="how long the load is, as a share of what it is")
    max_workers: int = option(48, flag="--max-workers", minimum=1, help="of each role")
    kv_tokens: int = option(448_000, flag="--kv-tokens", minimum=1, help="that a worker's KV cache holds")
    chunk_tokens: int = option(
        2048, flag="--max-num-batched-tokens", minimum=256, help="that a worker computes in one step"
    )
    bandwidth_gb_s: float = option(
        TransferModel().bandwidth_gb_s,
        flag="--transfer-bandwidth",
        metavar="GB/S",
        minimum=0,
        help="of a worker's link; 0: transfers take no time",
    )
    seed: int = option(0, flag="--seed", help="decides all that is left to chance")

    def engine(self, requests: Sequence[TraceRequest]) -> SchedulerConfig:
        """The size of each worker. Raises ConfigError for sizes that don't go together."""
        return SchedulerConfig(
            block_size=_BLOCK_SIZE,
            num_blocks=-(-self.kv_tokens // _BLOCK_SIZE),
            max_num_batched_tokens=self.chunk_tokens,
            max_model_len=longest_context(requests) + 1,
            max_num_waiting=len(requests),
        )
