from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from dynamo.telemetry.kv_transfer_metrics import KvTransferMetrics

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]  # importing vLLM and torch warns a lot

PREFIX = "dynamo_component_kv_transfer_"


def recorded(*steps: dict[str, Any]) -> CollectorRegistry:
    """The metrics after steps with these `scheduler_stats`."""
    from vllm.v1.metrics.stats import SchedulerStats

    from dynamo.engines.vllm.kv_transfer_stats import KvTransferRecorder

    metrics = KvTransferMetrics()
    logger = KvTransferRecorder(metrics).logger(None)
    logger.record(None, None)
    for step in steps:
        logger.record(SchedulerStats(**step), None)
    registry = CollectorRegistry()
    registry.register(metrics)
    return registry


def test_transfers_of_several_steps_add_up() -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.stats import NixlKVConnectorStats
    from vllm.v1.metrics.stats import PrefixCacheStats

    first, second = NixlKVConnectorStats(), NixlKVConnectorStats()
    first.data["transfer_duration"] += [0.02, 0.03]
    first.data["bytes_transferred"] += [1000, 500]
    second.record_failed_transfer()
    second.record_failed_handshake()
    second.record_kv_expired_req()

    registry = recorded(
        {"kv_connector_stats": first.data, "connector_prefix_cache_stats": PrefixCacheStats(hits=70)},
        {},
        {"kv_connector_stats": second.data, "connector_prefix_cache_stats": PrefixCacheStats()},
    )

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(PREFIX + name, labels)

    assert value("results_total", result="ok") == 2
    assert value("results_total", result="failed") == 2
    assert value("bytes_total") == 1500
    assert value("tokens_total") == 70
    assert value("seconds_count") == 2
    assert value("seconds_sum") == pytest.approx(0.05)
    assert value("expired_total") == 1


def test_nixls_connector_beside_another() -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiKVConnectorStats
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.stats import NixlKVConnectorStats

    of_nixl = NixlKVConnectorStats()
    of_nixl.data["transfer_duration"] += [0.02]
    of_nixl.data["bytes_transferred"] += [1000]
    told = MultiKVConnectorStats(data={"NixlConnector": of_nixl}).to_dict()
    assert recorded({"kv_connector_stats": told}).get_sample_value(PREFIX + "bytes_total") == 1000


def test_other_connectors_say_other_things() -> None:
    assert recorded({"kv_connector_stats": {"theirs": 1}}).get_sample_value(PREFIX + "bytes_total") == 0
