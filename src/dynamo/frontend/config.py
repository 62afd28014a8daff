"""The frontend's command line, named as upstream's."""

import math
import ssl
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from dynamo.config import Live, group, option
from dynamo.errors import ConfigError
from dynamo.frontend.overload_config import OverloadConfig
from dynamo.frontend.tls import server_context
from dynamo.llm.migration_config import MigrationConfig
from dynamo.llm.routing_setup import RoutingSetup
from dynamo.router.config import KvRouterConfig
from dynamo.router.disagg import DisaggConfig
from dynamo.router.selection import RouterMode
from dynamo.runtime.config import RuntimeConfig
from dynamo.telemetry.disagg_metrics import DisaggMetrics
from dynamo.telemetry.migration_metrics import MigrationMetrics
from dynamo.telemetry.router_metrics import RouterMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendConfig(RuntimeConfig):
    """Serve the OpenAI API for every model that a worker announces."""

    http_host: str = option(
        "127.0.0.1",
        flag="--http-host",
        env="DYN_HTTP_HOST",
        help="address to listen on; 0.0.0.0 for everybody who can reach this host",
    )
    http_port: int = option(
        8000, flag="--http-port", env="DYN_HTTP_PORT", help="port to listen on; 0 takes any free one"
    )
    router_mode: str = option(
        RouterMode.ROUND_ROBIN.value,
        flag="--router-mode",
        env="DYN_ROUTER_MODE",
        choices=[mode.value for mode in RouterMode],
        help="how requests are spread over workers",
    )
    router_service: bool = option(
        False,
        flag="--router-service",
        env="DYN_ROUTER_SERVICE",
        help="kv: `python -m dynamo.router` decides, with its own flags, for all frontends that ask it",
    )
    kv_router: KvRouterConfig = group(KvRouterConfig)
    disagg: DisaggConfig = group(DisaggConfig)
    migration: MigrationConfig = group(MigrationConfig)
    overload: OverloadConfig = group(OverloadConfig)
    body_limit_mb: float = option(
        45.0, flag="--http-body-limit-mb", env="DYN_HTTP_BODY_LIMIT_MB", help="largest request body in megabytes"
    )
    access_log: bool = option(
        True, flag="--access-log", env="DYN_HTTP_ACCESS_LOG", help="log a line for each request, at level info"
    )
    keep_alive_s: int = option(
        75, flag="--http-keep-alive", metavar="SECONDS", help="how long an idle client connection is kept"
    )
    client_timeout_s: float = option(
        60.0,
        flag="--http-client-timeout",
        metavar="SECONDS",
        help="how long a client may send nothing of its request, or take nothing of its answer",
    )
    connections_max: int = option(
        8192,
        flag="--http-max-connections",
        env="DYN_HTTP_MAX_CONNECTIONS",
        minimum=1,
        help="clients' connections at a time; more are refused",
    )
    request_timeout_s: float | None = option(
        None,
        flag="--request-timeout",
        env="DYN_HTTP_REQUEST_TIMEOUT",
        metavar="SECONDS",
        minimum=0.001,
        help="longest that a request may take; the header x-request-timeout-ms can ask for less (default: no limit)",
    )
    tls_cert_path: str | None = option(
        None,
        flag="--tls-cert-path",
        env="DYN_TLS_CERT_PATH",
        metavar="FILE",
        help="serve https with this certificate and those it depends on (PEM); needs --tls-key-path",
    )
    tls_key_path: str | None = option(
        None, flag="--tls-key-path", env="DYN_TLS_KEY_PATH", metavar="FILE", help="its private key (PEM)"
    )
    api_keys_file: str | None = option(
        None,
        flag="--api-keys-file",
        env="DYN_API_KEYS_FILE",
        metavar="FILE",
        help="who may use the API, made by `dynamo keys new`: TOML, or JSON; read again when it changes "
        "(default: whoever can connect)",
    )

    def routing(self, registry: CollectorRegistry) -> RoutingSetup:
        """Raises ConfigError for a router mode that has no service."""
        mode = RouterMode(self.router_mode)
        if self.router_service and mode is not RouterMode.KV:
            raise ConfigError(f"--router-service needs --router-mode kv, not {mode.value}")
        return RoutingSetup(
            mode=mode,
            kv=self.kv_router,
            service=self.router_service,
            disagg=Live(self.disagg),
            metrics=RouterMetrics(registry),
            disagg_metrics=DisaggMetrics(registry),
            migration=self.migration,
            migration_metrics=MigrationMetrics(registry),
        )

    def tls(self) -> ssl.SSLContext | None:
        """None where HTTP goes without TLS; raises ConfigError."""
        if not self.tls_cert_path and not self.tls_key_path:
            return None
        if not self.tls_cert_path or not self.tls_key_path:
            raise ConfigError("--tls-cert-path and --tls-key-path need each other")
        return server_context(self.tls_cert_path, self.tls_key_path)

    def body_limit_bytes(self) -> int:
        """Raises ConfigError when --http-body-limit-mb is no size."""
        if not 0 < self.body_limit_mb < math.inf:
            raise ConfigError(f"--http-body-limit-mb must be a positive number, not {self.body_limit_mb}")
        return int(self.body_limit_mb * 1_000_000)
