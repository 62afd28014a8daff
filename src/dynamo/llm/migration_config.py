"""What becomes of requests whose worker is lost."""

from dataclasses import dataclass

from dynamo.config import option


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationConfig:
    """When a request goes on at another worker."""

    migration_limit: int = option(
        3,
        flag="--migration-limit",
        env="DYN_MIGRATION_LIMIT",
        metavar="COUNT",
        minimum=0,
        help="how many times a request may go on at another worker when its own is lost; 0: it fails then",
    )
    migration_wait_s: float = option(
        10.0,
        flag="--migration-wait",
        env="DYN_MIGRATION_WAIT",
        metavar="SECONDS",
        minimum=0,
        help="how long a request whose worker is lost waits for one that can take it",
    )
    inter_token_timeout_s: float = option(
        30.0,
        flag="--inter-token-timeout",
        env="DYN_INTER_TOKEN_TIMEOUT",
        metavar="SECONDS",
        minimum=0,
        help="a worker that has begun to answer and then says nothing for so long is lost; 0: it may take its time",
    )
