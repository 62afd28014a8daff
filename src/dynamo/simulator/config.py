"""What is simulated."""

from collections.abc import Sequence
from dataclasses import dataclass

from dynamo.config import group, option
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.tiers_config import SimulatedTierOptions, TiersConfig
from dynamo.engines.mocker.transfer_model import BYTES_PER_TOKEN
from dynamo.errors import ConfigError
from dynamo.router.config import KvRouterConfig
from dynamo.simulator.arrivals import Arrivals
from dynamo.simulator.modes import SimulatedMode
from dynamo.simulator.trace import BLOCK_SIZE, TraceRequest, longest_context


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationConfig:
    """Play a trace against simulated workers behind each kind of router, in virtual time.

    The trace is in Mooncake's format: JSON lines with timestamp, input_length, output_length and hash_ids.
    """

    router_mode: str = option(
        ",".join(SimulatedMode),
        flag="--router-mode",
        metavar="MODE[,MODE...]",
        help="which routers to compare",
    )
    workers: int = option(16, flag=("--workers", "--num-workers"), help="workers behind the router")
    rate: float | None = option(
        None, flag="--rate", help="mean arrivals per second (default: what the trace itself has)"
    )
    arrivals: str = option(
        Arrivals.TRACE.value,
        flag="--arrivals",
        choices=tuple(Arrivals),
        help="the trace's own times on another scale, or independent ones",
    )
    limit: int | None = option(None, flag="--limit", help="only the first N requests of the trace")
    seed: int = option(0, flag="--seed", help="decides all that is left to chance")
    trace_block_size: int = option(BLOCK_SIZE, flag="--trace-block-size", help="tokens per hash id of the trace")
    block_size: int = option(BLOCK_SIZE, flag="--block-size", help="tokens per KV block")
    num_gpu_blocks_override: int | None = option(
        None, flag="--num-gpu-blocks-override", help="KV blocks of a worker (default: enough for the whole trace)"
    )
    max_num_seqs: int = option(256, flag="--max-num-seqs", help="sequences that run at once on a worker")
    max_num_batched_tokens: int = option(
        8192, flag="--max-num-batched-tokens", help="tokens that one step prefills and decodes"
    )
    event_latency_s: float = option(
        0.001, flag="--event-latency", metavar="SECONDS", help="until the router knows of a change in a cache"
    )
    kv_bytes_per_token: int = option(
        BYTES_PER_TOKEN, flag="--kv-bytes-per-token", help="size of the KV cache; the default is Llama 3.1 8B's"
    )
    kv_router: KvRouterConfig = group(KvRouterConfig)
    kvbm: SimulatedTierOptions = group(SimulatedTierOptions)

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be simulated."""
        if self.workers < 1:
            raise ConfigError(f"--workers must be at least 1, not {self.workers}")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise ConfigError(f"--rate must be a number above 0, not {self.rate}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit must be at least 1, not {self.limit}")
        if self.trace_block_size < 1:
            raise ConfigError(f"--trace-block-size must be at least 1, not {self.trace_block_size}")
        if not 0 <= self.event_latency_s < float("inf"):
            raise ConfigError(f"--event-latency must be a number of at least 0, not {self.event_latency_s}")
        if self.kv_bytes_per_token < 1:
            raise ConfigError(f"--kv-bytes-per-token must be at least 1, not {self.kv_bytes_per_token}")
        self.modes()

    def modes(self) -> list[SimulatedMode]:
        """At least one. Raises ConfigError for a mode that does not exist."""
        names = [name.strip() for name in self.router_mode.split(",")]
        for name in names:
            if name not in tuple(SimulatedMode):
                raise ConfigError(f"--router-mode: {name!r} is not one of {', '.join(SimulatedMode)}")
        return [SimulatedMode(name) for name in names]

    def tiers(self) -> TiersConfig | None:
        """Of each worker. Raises ConfigError for tiers that could hold nothing."""
        return self.kvbm.tiers(self.block_size, self.kv_bytes_per_token)

    def engine(self, requests: Sequence[TraceRequest]) -> SchedulerConfig:
        """The size of each worker, which any of these requests fits in.

        Raises ConfigError for sizes that don't go together, and for too few blocks.
        """
        longest, given = longest_context(requests), self.num_gpu_blocks_override
        engine = SchedulerConfig(
            block_size=self.block_size,
            num_blocks=ample_blocks(requests, self.block_size) if given is None else given,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=longest + 1,
            max_num_waiting=len(requests),
        )
        if engine.context_length < longest:
            raise ConfigError(
                f"a request of the trace has {longest} tokens, which do not fit in {engine.num_blocks} blocks"
                f" of {engine.block_size}"
            )
        return engine


def ample_blocks(requests: Sequence[TraceRequest], block_size: int) -> int:
    """As many blocks as all requests together could fill if they had nothing in common."""
    return sum(-(-(request.prompt_tokens + request.output_tokens) // block_size) for request in requests)
