"""What the planner aims at, and within which bounds."""

from dataclasses import dataclass

from dynamo.config import option
from dynamo.errors import ConfigError

MODES = ("load", "throughput", "both")
PREDICTORS = ("constant", "moving-average", "arima", "kalman", "seasonal")
WORKERS_MAX = 1_000_000  # of one role: more are a mistake
DAY_S = 86400.0
_GPUS_MAX = 1_000_000  # of a worker


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerOptions:
    """Those that `python -m dynamo.planner` and `dynamo serve --planner` have in common. Pure."""

    ttft_ms: float = option(
        500.0,
        flag=("--ttft-ms", "--ttft"),
        minimum=0.001,
        maximum=1000 * DAY_S,
        help="the time to the first token that is aimed at",
    )
    itl_ms: float = option(
        50.0,
        flag=("--itl-ms", "--itl"),
        minimum=0.001,
        maximum=1000 * DAY_S,
        help="the time between two tokens that is aimed at",
    )
    min_prefill_workers: int = option(
        1, flag="--min-prefill-workers", minimum=0, maximum=WORKERS_MAX, help="also without any traffic"
    )
    max_prefill_workers: int = option(
        64, flag="--max-prefill-workers", minimum=1, maximum=WORKERS_MAX, help="never more of them"
    )
    min_decode_workers: int = option(
        1,
        flag=("--min-decode-workers", "--min-workers"),
        minimum=1,
        maximum=WORKERS_MAX,
        help="likewise, for workers that do all of a request too",
    )
    max_decode_workers: int = option(
        64,
        flag=("--max-decode-workers", "--max-workers"),
        minimum=1,
        maximum=WORKERS_MAX,
        help="likewise, for workers that do all of a request too",
    )
    gpu_budget: int | None = option(
        None, flag=("--gpu-budget", "--max-gpu-budget"), minimum=1, help="all workers together never have more GPUs"
    )
    prefill_gpus: int = option(
        1,
        flag=("--prefill-gpus", "--prefill-engine-num-gpu"),
        minimum=1,
        maximum=_GPUS_MAX,
        help="of a worker; without GPUs: its weight",
    )
    decode_gpus: int = option(
        1, flag=("--decode-gpus", "--decode-engine-num-gpu"), minimum=1, maximum=_GPUS_MAX, help="likewise"
    )
    mode: str = option(
        "both", flag="--mode", choices=MODES, help="react to the load, provide for the forecast, or both"
    )
    predictor: str = option(
        "constant",
        flag=("--predictor", "--load-predictor"),
        choices=PREDICTORS,
        help="how the coming traffic is forecast",
    )
    interval_s: float = option(
        5.0, flag="--interval-s", minimum=0.01, maximum=DAY_S, help="between two looks at the load"
    )
    throughput_interval_s: float = option(
        180.0, flag=("--throughput-interval-s", "--adjustment-interval"), minimum=0.01, help="between two forecasts"
    )
    scale_down_delay_s: float = option(
        60.0, flag="--scale-down-delay-s", minimum=0, help="for how long fewer workers must have been enough"
    )
    start_timeout_s: float = option(
        600.0,
        flag="--start-timeout-s",
        minimum=0.01,
        help="when a worker that is not ready, or has not ended, is reported, and not counted on or waited for",
    )
    convert_roles: bool = option(
        False, flag="--convert-roles", help="turn prefill into decode workers and back, where engines can"
    )
    profile: str | None = option(
        None, flag="--profile", metavar="FILE", help="what `dynamo profile` has measured; without it the planner learns"
    )
    advisory: bool = option(False, flag=("--advisory", "--no-operation"), help="say what would be done, do nothing")

    def __post_init__(self) -> None:
        """Raises ConfigError for bounds that leave nothing between them."""
        for role, least, most in (
            ("prefill", self.min_prefill_workers, self.max_prefill_workers),
            ("decode", self.min_decode_workers, self.max_decode_workers),
        ):
            if least > most:
                raise ConfigError(f"--min-{role}-workers {least} is more than --max-{role}-workers {most}")
