"""The flags of the block manager: those of workers and `dynamo serve`, and those of the service itself."""

import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from dynamo.config import option
from dynamo.errors import ConfigError
from dynamo.kvbm.socket_path import SOCKET_VARIABLE, default_socket
from dynamo.protocols.kvbm import PoolOptions
from dynamo.runtime.config import RuntimeConfig

_GB = 1_000_000_000
_GB_MAX = 1e9  # an exabyte; more bytes than that have no place in a message
_ONBOARD_MS_MAX = 3_600_000
_SCHEMES = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "http", "https", "file", "memory")  # obstore's
_SOCKET_HELP = "where the host's block manager listens (default: $XDG_RUNTIME_DIR/dynamo/kvbm.sock)"
_LINGER_HELP = "how long a block manager that a worker has started goes on after the last engine has left"
_LINGER_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KvbmOptions:
    """Keep KV blocks beyond the engine's memory."""

    host_gb: float = option(
        0.0,
        flag="--kvbm-host-gb",
        env="DYN_KVBM_HOST_GB",
        metavar="GB",
        minimum=0,
        maximum=_GB_MAX,
        help="host memory for KV blocks, shared by all workers of this host that serve the same model; 0: no block"
        " manager",
    )
    disk_gb: float = option(
        0.0,
        flag="--kvbm-disk-gb",
        env="DYN_KVBM_DISK_GB",
        metavar="GB",
        minimum=0,
        maximum=_GB_MAX,
        help="disk below it",
    )
    disk_dir: str = option(
        "", flag="--kvbm-disk-dir", env="DYN_KVBM_DISK_DIR", metavar="DIR", help="where those files are"
    )
    object_url: str = option(
        "",
        flag="--kvbm-object-url",
        env="DYN_KVBM_OBJECT_URL",
        metavar="URL",
        help="object store below that: s3://bucket/prefix, gs://…, az://… or file:///directory; it says no secret,"
        " credentials come from the environment (AWS_ACCESS_KEY_ID, …)",
    )
    peers: bool = option(
        False, flag="--kvbm-peers", env="DYN_KVBM_PEERS", help="fetch blocks from other hosts' block managers too"
    )
    policy: str = option(
        "tinylfu",
        flag="--kvbm-policy",
        env="DYN_KVBM_POLICY",
        choices=("lru", "tinylfu"),
        help="which blocks leave a full tier",
    )
    disk_filter: str = option(
        "none",
        flag="--kvbm-disk-filter",
        env="DYN_KVBM_DISK_FILTER",
        choices=("frequency", "none"),
        help="which blocks go to the disk: all, or those that were asked for again while host memory had them, which"
        " spares the disk",
    )
    disk_offload: str = option(
        "write-through",
        flag="--kvbm-disk-offload",
        env="DYN_KVBM_DISK_OFFLOAD",
        choices=("write-through", "on-evict"),
        help="when they go there: as soon as they may, or when they leave host memory",
    )
    onboard_timeout_ms: int = option(
        1000,
        flag="--kvbm-onboard-timeout-ms",
        env="DYN_KVBM_ONBOARD_TIMEOUT_MS",
        metavar="MS",
        minimum=0,
        maximum=_ONBOARD_MS_MAX,
        help="how long a request waits for blocks from below host memory, at most; then they are computed",
    )
    linger_s: float = option(
        _LINGER_S, flag="--kvbm-linger", env="DYN_KVBM_LINGER", metavar="SECONDS", minimum=0, help=_LINGER_HELP
    )
    socket: str = option("", flag="--kvbm-socket", env=SOCKET_VARIABLE, metavar="PATH", help=_SOCKET_HELP)

    start: bool = option(
        True,
        flag="--kvbm-start",
        env="DYN_KVBM_START",
        help="start a block manager where there is none; otherwise wait for it",
    )

    def __post_init__(self) -> None:
        """Raises ConfigError for what does not go together."""
        if bool(self.disk_gb) != bool(self.disk_dir):
            raise ConfigError("--kvbm-disk-gb and --kvbm-disk-dir belong together: give both, or none")
        if not self.host_gb and (self.disk_gb or self.object_url or self.peers):
            raise ConfigError(
                "--kvbm-disk-gb, --kvbm-object-url and --kvbm-peers need --kvbm-host-gb: they lie below it"
            )
        if self.object_url:
            _check_url(self.object_url)

    @property
    def is_enabled(self) -> bool:
        return self.host_gb > 0

    @property
    def socket_path(self) -> Path:
        return Path(self.socket) if self.socket else default_socket()

    def pool_options(self) -> PoolOptions:
        """What an engine attaches with."""
        return PoolOptions(
            host_bytes=int(self.host_gb * _GB),
            disk_bytes=int(self.disk_gb * _GB),
            disk_dir=str(Path(self.disk_dir).absolute()) if self.disk_dir else "",
            object_url=self.object_url,
            peers=self.peers,
            policy=self.policy,
            disk_filter=self.disk_filter,
            disk_offload=self.disk_offload,
            onboard_timeout_ms=self.onboard_timeout_ms,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig(RuntimeConfig):
    """Keep the KV blocks of this host's engines. Workers with --kvbm-host-gb start it if need be.

    How large a pool is, and what lies below it, is said by the first engine that uses it.
    """

    kvbm_socket: str = option("", flag="--kvbm-socket", env=SOCKET_VARIABLE, metavar="PATH", help=_SOCKET_HELP)
    kvbm_linger_s: float | None = option(
        None,
        flag="--kvbm-linger",
        metavar="SECONDS",
        minimum=0,
        help="end when there has been no engine for so long (default: never)",
    )

    @property
    def socket_path(self) -> Path:
        return Path(self.kvbm_socket) if self.kvbm_socket else default_socket()


def _check_url(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if not parts.scheme:
        raise ConfigError(f"--kvbm-object-url is a URL such as s3://bucket/prefix, not {url!r}")
    if parts.username is not None or parts.password is not None or parts.query:
        raise ConfigError("--kvbm-object-url may hold no credentials: they come from the environment")
    if parts.scheme not in _SCHEMES:
        raise ConfigError(f"--kvbm-object-url knows no {parts.scheme}: it is one of {', '.join(_SCHEMES)}")
    if parts.scheme == "file" and (parts.netloc or not parts.path):
        raise ConfigError("--kvbm-object-url needs an absolute directory, as in file:///directory")
    if parts.scheme not in ("file", "memory") and not parts.netloc:
        raise ConfigError(f"--kvbm-object-url needs a bucket, as in {parts.scheme}://bucket/prefix")
