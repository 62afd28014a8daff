"""What vLLM's NIXL connector says about its transfers, counted."""

from collections.abc import Mapping, Sequence

from vllm.config import VllmConfig as EngineConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

from dynamo.telemetry.kv_transfer_metrics import KvTransferMetrics

_FAILURES = ("num_failed_transfers", "num_failed_handshakes")


class KvTransferRecorder:
    """Adds up the numbers of all data-parallel ranks."""

    def __init__(self, metrics: KvTransferMetrics) -> None:
        self._metrics = metrics

    def logger(self, vllm_config: EngineConfig, engine_index: int = 0) -> StatLoggerBase:
        """For vLLM, which wants one per rank."""
        return _Logger(self)

    def record(self, stats: SchedulerStats) -> None:
        """What has come since the last time."""
        metrics = self._metrics
        if stats.connector_prefix_cache_stats is not None:
            metrics.tokens += stats.connector_prefix_cache_stats.hits
        if stats.kv_connector_stats is None:
            return
        told = stats.kv_connector_stats
        lists: Mapping[str, Sequence[float]] = told.get("NixlConnector", told)  # by connector, if there are several
        for duration_s in lists.get("transfer_duration", ()):
            metrics.ended["ok"] += 1
            metrics.duration.observe(duration_s)
        metrics.size_bytes += int(sum(lists.get("bytes_transferred", ())))
        if failed := sum(len(lists.get(kind, ())) for kind in _FAILURES):
            metrics.ended["failed"] += failed
        metrics.expired += len(lists.get("num_kv_expired_reqs", ()))


class _Logger(StatLoggerBase):  # type: ignore[misc] # vLLM is untyped here
    def __init__(self, recorder: KvTransferRecorder) -> None:
        self._recorder = recorder

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is not None:
            self._recorder.record(scheduler_stats)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
