"""The command line of the simulated engine, named as upstream's."""

import logging
from dataclasses import dataclass
from pathlib import Path

from dynamo.config import group, option
from dynamo.engines.config import DisaggregatedWorkerConfig
from dynamo.engines.mocker.block_content import ALIGN_BYTES
from dynamo.engines.mocker.handoff_config import HandoffConfig
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.tiers_config import SimulatedTierOptions, TiersConfig
from dynamo.engines.mocker.timing import TimingModel
from dynamo.engines.mocker.transfer_model import BYTES_PER_TOKEN, TransferModel
from dynamo.errors import ConfigError
from dynamo.llm.model_card import model_context_length
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.free_memory import available_memory_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MockerConfig(DisaggregatedWorkerConfig):
    """Serve a model by a simulated engine: real scheduling, simulated time, words without sense."""

    model_path: str = option(
        "smollm2",
        flag=("--model-path", "--model"),
        help="whose tokenizer and chat template to use: a directory, a hub name or smollm2",
    )
    model_name: str | None = option(
        None, flag="--model-name", help="name to serve it under (default: the last part of the path)"
    )
    num_workers: int = option(1, flag="--num-workers", help="workers in this process, each with its own KV cache")
    speedup_ratio: float = option(
        1.0, flag="--speedup-ratio", help="how many times faster than the simulated time; 0: as fast as it goes"
    )
    block_size: int = option(64, flag="--block-size", help="tokens per KV block")
    num_gpu_blocks_override: int = option(16384, flag="--num-gpu-blocks-override", help="KV blocks of a worker")
    max_num_seqs: int = option(256, flag="--max-num-seqs", help="sequences that run at once")
    max_num_batched_tokens: int = option(
        8192, flag="--max-num-batched-tokens", help="tokens that one step prefills and decodes"
    )
    max_num_waiting: int = option(
        8192, flag="--max-num-waiting", help="requests that may wait; more are refused as overload"
    )
    max_model_len: int | None = option(
        None, flag="--max-model-len", help="context length in tokens (default: the model's own)"
    )
    enable_prefix_caching: bool = option(
        True, flag="--enable-prefix-caching", help="use the KV blocks of an earlier request with the same start again"
    )
    enable_chunked_prefill: bool = option(
        True, flag="--enable-chunked-prefill", help="spread a long prompt over several steps"
    )
    startup_time_s: float = option(
        0.0, flag="--startup-time", metavar="SECONDS", help="how long to pretend to load a model"
    )
    kv_transfer: str = option(
        "model",
        flag="--kv-transfer",
        choices=("model", "bytes"),
        help="how prompts get from prefill to decode workers: in the time that a model says, or by moving real bytes",
    )
    kv_transfer_bandwidth: float = option(
        64.0, flag="--kv-transfer-bandwidth", metavar="GB/S", help="of a worker's link in the model; 0: no time at all"
    )
    kv_transfer_latency: float = option(
        0.2, flag="--kv-transfer-latency", metavar="MS", help="of a transfer in the model, beside the time of its bytes"
    )
    kv_bytes_per_token: int = option(
        BYTES_PER_TOKEN, flag="--kv-bytes-per-token", help="size of the KV cache; the default is Llama 3.1 8B's"
    )
    kv_handoff_timeout_s: float = option(
        60.0,
        flag="--kv-handoff-timeout",
        metavar="SECONDS",
        help="how long a decode worker may take to fetch a prompt; one that it has not begun to fetch is kept ten times"
        " as long, and no longer than its request lives",
    )
    seed: int = option(0, flag="--seed", help="decides what the model says")
    data_parallel_size: int = option(
        1, flag=("--data-parallel-size", "--dp-size"), help="as upstream's; only 1 is possible yet"
    )
    engine_type: str = option("vllm", flag="--engine-type", choices=("vllm",), help="whose scheduling to simulate")
    watermark: float | None = option(None, flag="--watermark", help="accepted as upstream's, without effect")
    kvbm: SimulatedTierOptions = group(SimulatedTierOptions)

    def scheduler_config(self, model_dir: Path) -> SchedulerConfig:
        """Raises ConfigError for sizes that don't go together."""
        if self.data_parallel_size != 1:
            raise ConfigError("--data-parallel-size must be 1: use --num-workers for more than one")
        if self.watermark is not None:
            logger.warning("--watermark has no effect")
        max_model_len = self.max_model_len or model_context_length(model_dir)
        if max_model_len is None:
            raise ConfigError(f"{model_dir} does not say its context length: give --max-model-len")
        return SchedulerConfig(
            block_size=self.block_size,
            num_blocks=self.num_gpu_blocks_override,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=max_model_len,
            max_num_waiting=self.max_num_waiting,
            enable_prefix_caching=self.enable_prefix_caching,
            enable_chunked_prefill=self.enable_chunked_prefill,
        )

    def timing_model(self) -> TimingModel:
        """Raises ConfigError when --speedup-ratio is not possible."""
        return TimingModel(speedup_ratio=self.speedup_ratio)

    def tiers_config(self) -> TiersConfig | None:
        """None where there are no tiers. Raises ConfigError for tiers that could hold nothing."""
        if self.kvbm.is_enabled and not self.enable_prefix_caching:
            raise ConfigError("--kvbm-host-gb needs prefix caching: without it no block is ever looked for")
        return self.kvbm.tiers(self.block_size, self.kv_bytes_per_token, speedup_ratio=self.speedup_ratio)

    def handoff_config(self, num_engines: int = 1) -> HandoffConfig:
        """Raises ConfigError for figures that are not possible, or real memory that is not there."""
        if not 0 < self.kv_handoff_timeout_s < float("inf"):
            raise ConfigError(f"--kv-handoff-timeout must be more than 0 seconds, not {self.kv_handoff_timeout_s}")
        config = HandoffConfig(
            role=self.worker_type,
            host=self.rpc_host,
            lease_s=self.kv_handoff_timeout_s,
            model=TransferModel(
                bandwidth_gb_s=self.kv_transfer_bandwidth,
                bytes_per_token=self.kv_bytes_per_token,
                latency_ms=self.kv_transfer_latency,
                speedup_ratio=self.speedup_ratio,
            ),
            credentials=self.credentials(),
            real_bytes=self.kv_transfer == "bytes",
        )
        if config.real_bytes and config.role is not WorkerType.Aggregated:
            self._check_real_bytes(num_engines)
        return config

    def _check_real_bytes(self, num_engines: int) -> None:
        block_bytes = self.block_size * self.kv_bytes_per_token
        if block_bytes % ALIGN_BYTES:
            raise ConfigError(
                f"--kv-transfer bytes needs KV blocks of a multiple of {ALIGN_BYTES} bytes, not {block_bytes}"
            )
        needed = num_engines * self.num_gpu_blocks_override * block_bytes
        available = available_memory_bytes()
        if needed > available / 2:
            raise ConfigError(
                f"--kv-transfer bytes needs {needed / 1e9:.1f} GB of memory for KV blocks, which is more than half of"
                f" the {available / 1e9:.1f} GB that are free: lower --num-gpu-blocks-override, --num-workers or"
                " --kv-bytes-per-token"
            )
