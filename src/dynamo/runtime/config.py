"""How a process takes part in a deployment; every process's own configuration inherits from this."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dynamo.config import group, option
from dynamo.errors import ConfigError
from dynamo.runtime.channels import Heartbeat
from dynamo.runtime.credentials import Credentials, read_secret
from dynamo.runtime.discovery.etcd_config import EtcdConfig
from dynamo.runtime.discovery.file import default_directory
from dynamo.runtime.instance import EndpointId
from dynamo.runtime.listening_socket import PORT_MAX
from dynamo.runtime.mutual_tls import MutualTls, mutual_tls

DEFAULT_NAMESPACE = "dynamo"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """Take part in a deployment."""

    namespace: str | None = option(
        None,
        flag="--namespace",
        env="DYN_NAMESPACE",
        help="separates deployments that share a discovery backend: a worker serves in it (default: dynamo), "
        "a frontend looks for models in it only (default: in all of them)",
    )
    discovery_backend: str = option(
        "file",
        flag="--discovery-backend",
        env="DYN_DISCOVERY_BACKEND",
        choices=("file", "etcd", "mem"),
        aliases={"memory": "mem"},
        help="how processes find each other: a directory of this host, etcd, or only within this process",
    )
    file_kv: str | None = option(
        None,
        flag="--file-kv",
        env="DYN_FILE_KV",
        metavar="DIR",
        help="directory of the file backend; without it, one for this user under the system's temporary directory",
    )
    etcd: EtcdConfig = group(EtcdConfig)
    request_plane: str = option(
        "tcp",
        flag="--request-plane",
        env="DYN_REQUEST_PLANE",
        choices=("tcp", "inproc"),
        help="how requests travel: sockets (TCP, and Unix sockets on one host), or within this process",
    )
    event_plane: str = option(
        "direct",
        flag="--event-plane",
        env="DYN_EVENT_PLANE",
        choices=("direct", "nats"),
        help="how KV events and loads reach routers: each router asks each worker, or workers tell all at once",
    )
    nats_server: str = option(
        "nats://localhost:4222",
        flag="--nats-server",
        env="NATS_SERVER",
        metavar="URL",
        help="nats://[user:password@]host:port or tls://, several with commas; better in the variable with a password",
    )
    rpc_host: str = option(
        "127.0.0.1", flag="--rpc-host", env="DYN_TCP_RPC_HOST", help="address on which endpoints are served"
    )
    rpc_port: int = option(0, flag="--rpc-port", env="DYN_TCP_RPC_PORT", help="its port; 0 takes any free one")
    rpc_advertise: str | None = option(
        None,
        flag="--rpc-advertise",
        env="DYN_TCP_RPC_ADVERTISE",
        metavar="HOST:PORT",
        help="where others reach --rpc-host and --rpc-port, if it is elsewhere: behind a proxy or a mapped port",
    )
    request_plane_secret_file: str | None = option(
        None,
        flag="--request-plane-secret-file",
        env="DYN_REQUEST_PLANE_SECRET_FILE",
        metavar="FILE",
        help="holds a secret that all processes of a deployment have to know before they call each other;"
        " or set DYN_REQUEST_PLANE_SECRET to it",
    )
    request_plane_tls_cert: str | None = option(
        None,
        flag="--request-plane-tls-cert",
        env="DYN_REQUEST_PLANE_TLS_CERT",
        metavar="FILE",
        help="this process's certificate (PEM): with it processes call each other over TLS, and each must show one",
    )
    request_plane_tls_key: str | None = option(
        None,
        flag="--request-plane-tls-key",
        env="DYN_REQUEST_PLANE_TLS_KEY",
        metavar="FILE",
        help="its private key (PEM)",
    )
    request_plane_tls_ca: str | None = option(
        None,
        flag="--request-plane-tls-ca",
        env="DYN_REQUEST_PLANE_TLS_CA",
        metavar="FILE",
        help="the authority (PEM) that has signed the certificates of all processes, and no others",
    )
    system_host: str = option(
        "127.0.0.1", flag="--system-host", env="DYN_SYSTEM_HOST", help="address of /health, /live and /metrics"
    )
    system_port: int = option(
        -1, flag="--system-port", env="DYN_SYSTEM_PORT", help="its port; 0 takes any free one, -1 turns it off"
    )
    shutdown_timeout_s: float = option(
        30.0,
        flag="--shutdown-timeout",
        env="DYN_GRACEFUL_SHUTDOWN_TIMEOUT",
        metavar="SECONDS",
        help="how long requests under way may go on after SIGTERM or Ctrl-C",
    )
    heartbeat_interval_s: float = option(
        1.0,
        flag="--heartbeat-interval",
        env="DYN_HEARTBEAT_INTERVAL",
        metavar="SECONDS",
        minimum=0,
        help="how often processes that this one calls are asked for a sign of life; 0: never",
    )
    stall_timeout_s: float = option(
        5.0,
        flag="--stall-timeout",
        env="DYN_STALL_TIMEOUT",
        metavar="SECONDS",
        minimum=0,
        help="after that long without a sign of life a process gets no requests until it gives one,"
        " and those that it had go to others",
    )
    canary_interval_s: float = option(
        10.0,
        flag="--canary-interval",
        env="DYN_CANARY_WAIT_TIME",
        metavar="SECONDS",
        minimum=0,
        help="after that long without work an engine is asked for a token, to see whether it still makes any; 0: never",
    )
    engine_stall_timeout_s: float = option(
        60.0,
        flag="--engine-stall-timeout",
        env="DYN_ENGINE_STALL_TIMEOUT",
        metavar="SECONDS",
        minimum=0,
        help="an engine that has work and makes no progress for that long gets no requests until it does,"
        " and those that it had go to others; 0: never",
    )

    @property
    def heartbeat(self) -> Heartbeat:
        return Heartbeat(interval_s=self.heartbeat_interval_s, stall_s=self.stall_timeout_s)

    def advertised(self) -> tuple[str, int] | None:
        """Raises ConfigError when --rpc-advertise is no address, or belongs to no port."""
        if self.rpc_advertise is None:
            return None
        host, colon, port = self.rpc_advertise.rpartition(":")
        if not (host.strip("[]") and colon and port.isdecimal() and 0 < int(port) <= PORT_MAX):
            raise ConfigError(f"--rpc-advertise is HOST:PORT, not {self.rpc_advertise!r}")
        if self.rpc_port == 0:
            raise ConfigError("--rpc-advertise needs an --rpc-port: what leads there must know it")
        return host.strip("[]"), int(port)

    def credentials(self, environ: Mapping[str, str] = os.environ) -> Credentials:
        """Raises ConfigError for a secret or certificate that cannot be read, or is none."""
        return Credentials(secret=read_secret(self.request_plane_secret_file, environ), tls=self._mutual_tls())

    def _mutual_tls(self) -> MutualTls | None:
        cert, key, ca = self.request_plane_tls_cert, self.request_plane_tls_key, self.request_plane_tls_ca
        if cert is None and key is None and ca is None:
            return None
        if cert is None or key is None or ca is None:
            raise ConfigError("--request-plane-tls-cert, -key and -ca belong together: give all three, or none")
        return mutual_tls(cert, key, ca)

    @property
    def worker_namespace(self) -> str:
        return self.namespace or DEFAULT_NAMESPACE

    def workers_endpoint(self, path: str | None, component: str = "backend") -> EndpointId:
        """Where workers serve: at `path`, or where those of `component` do when nothing is said.

        Raises ConfigError for a path of another form.
        """
        try:
            return EndpointId.parse(path or f"{self.worker_namespace}.{component}.generate")
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def discovery_directory(self) -> Path:
        return Path(self.file_kv) if self.file_kv else default_directory()
