from prometheus_client import CollectorRegistry, generate_latest

from dynamo.telemetry.kv_transfer_metrics import KvTransferMetrics


def test_what_is_shown() -> None:
    metrics = KvTransferMetrics()
    metrics.ended["ok"] += 2
    metrics.ended["handoff_lost"] += 1
    metrics.tokens, metrics.size_bytes, metrics.held, metrics.expired = 30, 4000, 3, 1
    metrics.duration.observe(0.002)
    metrics.duration.observe(0.2)
    registry = CollectorRegistry()
    registry.register(metrics)
    lines = generate_latest(registry).decode().splitlines()

    prefix = "dynamo_component_kv_transfer_"
    for line in (
        'results_total{result="ok"} 2.0',
        'results_total{result="handoff_lost"} 1.0',
        "tokens_total 30.0",
        "bytes_total 4000.0",
        "held 3.0",
        "expired_total 1.0",
        'seconds_bucket{le="0.0025"} 1.0',
        "seconds_count 2.0",
        "seconds_sum 0.202",
    ):
        assert prefix + line in lines
