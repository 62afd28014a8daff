"""What is counted under upstream's name."""

from prometheus_client import CollectorRegistry

from dynamo.telemetry.migration_metrics import MigrationMetrics, MigrationType


def test_moves_by_model_and_type() -> None:
    registry = CollectorRegistry()
    metrics = MigrationMetrics(registry)
    for kind in (MigrationType.NEW_REQUEST, MigrationType.ONGOING_REQUEST, MigrationType.ONGOING_REQUEST):
        metrics.moved("m", kind)
    name = "dynamo_frontend_model_migration_total"
    counts = {
        kind: registry.get_sample_value(name, {"model": "m", "migration_type": kind})
        for kind in ("new_request", "ongoing_request")
    }
    assert counts == {"new_request": 1, "ongoing_request": 2}
