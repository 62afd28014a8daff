"""How busy vLLM is, from its own statistics."""

import time
from collections.abc import Callable

import msgspec
from vllm.config import VllmConfig as EngineConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

from dynamo.protocols.load import WorkerLoad


class LoadRecorder(StatLoggerBase):  # type: ignore[misc] # vLLM is untyped here
    """Keeps the latest numbers of one data-parallel rank; vLLM makes one per rank and calls it after each step."""

    def __init__(
        self, vllm_config: EngineConfig, engine_index: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        blocks = vllm_config.cache_config.num_gpu_blocks or 0  # of all ranks together
        self._load = WorkerLoad(
            dp_rank=engine_index, kv_total_blocks=blocks // vllm_config.parallel_config.data_parallel_size, steps=0
        )
        self._block_size = vllm_config.cache_config.block_size
        self._clock = clock
        self._idle_since_s: float | None = clock()  # None: it was busy after the last step
        self._counted_s = clock()  # until when busy_s counts, while it is busy

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
            self._count(iteration_stats)
        self._mark()

    def _count(self, stats: IterationStats) -> None:
        """A step with outputs: it began when the one before it had ended, or with the request that ended the silence.

        vLLM tells of a prompt when it is computed whole; steps without any output count with the next one.
        """
        load, now_s = self._load, self._clock()
        waited_s = stats.time_to_first_tokens_iter
        if self._idle_since_s is None:
            began_s = self._counted_s
        elif waited_s and not stats.prompt_token_stats.external_kv_transfer:  # whose transfer is no work
            began_s = max(self._idle_since_s, now_s - max(waited_s))
        else:
            return
        load.busy_s += max(0.0, now_s - began_s)
        self._idle_since_s, self._counted_s = None, now_s
        if waited_s:
            load.prefill_steps += 1
            load.prefilled_tokens += stats.prompt_token_stats.computed
        if stats.inter_token_latencies_iter:
            load.decode_steps += 1
            load.decoded_tokens += max(0, stats.num_generation_tokens - len(waited_s))
            load.kv_token_steps += load.kv_used_blocks * self._block_size

    def _mark(self) -> None:
        """A silence begins when nothing is left to do."""
        if not self._load.running_requests and not self._load.waiting_requests:
            self._idle_since_s = self._clock()

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
