"""What a scraper learns of an engine's KV events."""

from prometheus_client import CollectorRegistry, generate_latest

from dynamo.telemetry.kv_event_metrics import KvEventFigures, KvEventMetrics


def test_every_figure_of_every_rank() -> None:
    figures: dict[int, KvEventFigures] = {}
    registry = CollectorRegistry()
    registry.register(KvEventMetrics(lambda: figures))
    for dp_rank in (0, 3):
        figures[dp_rank] = KvEventFigures(
            messages=dp_rank + 1,
            replays=dp_rank + 2,
            gaps=dp_rank + 3,
            malformed=dp_rank + 4,
            unnamed_blocks=dp_rank + 5,
        )

    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]

    assert lines == [
        'dynamo_worker_kv_events_messages_total{dp_rank="0"} 1.0',
        'dynamo_worker_kv_events_messages_total{dp_rank="3"} 4.0',
        'dynamo_worker_kv_events_replays_total{dp_rank="0"} 2.0',
        'dynamo_worker_kv_events_replays_total{dp_rank="3"} 5.0',
        'dynamo_worker_kv_events_gaps_total{dp_rank="0"} 3.0',
        'dynamo_worker_kv_events_gaps_total{dp_rank="3"} 6.0',
        'dynamo_worker_kv_events_malformed_total{dp_rank="0"} 4.0',
        'dynamo_worker_kv_events_malformed_total{dp_rank="3"} 7.0',
        'dynamo_worker_kv_events_unnamed_blocks_total{dp_rank="0"} 5.0',
        'dynamo_worker_kv_events_unnamed_blocks_total{dp_rank="3"} 8.0',
    ]
