"""How busy vLLM is, from its own statistics."""

import msgspec
from vllm.config import VllmConfig as EngineConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

from dynamo.protocols.load import WorkerLoad


class LoadRecorder(StatLoggerBase):  # type: ignore[misc] # vLLM is untyped here
    """Keeps the latest numbers of one data-parallel rank; vLLM makes one per rank and calls it after each step."""

    def __init__(self, vllm_config: EngineConfig, engine_index: int = 0) -> None:
        blocks = vllm_config.cache_config.num_gpu_blocks or 0  # of all ranks together
        self._load = WorkerLoad(
            dp_rank=engine_index, kv_total_blocks=blocks // vllm_config.parallel_config.data_parallel_size, steps=0
        )

    def load(self) -> WorkerLoad:
        """The numbers after the last step."""
        return msgspec.structs.replace(self._load)

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        load = self._load
        load.steps = (load.steps or 0) + 1
        if scheduler_stats is not None:
            load.running_requests = scheduler_stats.num_running_reqs
            load.waiting_requests = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            load.kv_used_blocks = round(scheduler_stats.kv_cache_usage * load.kv_total_blocks)
        if iteration_stats is not None:
            load.generated_tokens += iteration_stats.num_generation_tokens

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
