"""dynamo_frontend_model_migration_total: requests that went on at another worker."""

from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter


class MigrationType(StrEnum):
    """When the worker was lost, in upstream's words."""

    NEW_REQUEST = "new_request"  # before its first output
    ONGOING_REQUEST = "ongoing_request"  # after it


class MigrationMetrics:
    """The counter of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._moves = Counter(
            "dynamo_frontend_model_migration_total",
            "Requests that went on at another worker because theirs was lost",
            ("model", "migration_type"),
            registry=registry,
        )

    def moved(self, model: str, kind: MigrationType) -> None:
        """A request goes on elsewhere."""
        self._moves.labels(model, kind.value).inc()
