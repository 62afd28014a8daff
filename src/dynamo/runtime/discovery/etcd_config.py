"""Where etcd is, and how to show who we are. Variables have upstream's names."""

from dataclasses import dataclass

from dynamo.config import option


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdConfig:
    """Find other processes through etcd."""

    endpoints: str = option(
        "http://localhost:2379",
        flag="--etcd-endpoints",
        env="ETCD_ENDPOINTS",
        metavar="URLS",
        help="etcd: http(s)://host:port of its members, separated by commas; any one that answers will do",
    )
    auth_username: str | None = option(
        None, flag="--etcd-auth-username", env="ETCD_AUTH_USERNAME", help="etcd: user to log in as, if it wants one"
    )
    auth_password: str | None = option(None, flag=(), env="ETCD_AUTH_PASSWORD", help="etcd: that user's password")
    auth_ca: str | None = option(
        None,
        flag="--etcd-auth-ca",
        env="ETCD_AUTH_CA",
        metavar="FILE",
        help="etcd: certificates (PEM) that its own must be signed by (default: those that the system trusts)",
    )
    auth_client_cert: str | None = option(
        None,
        flag="--etcd-auth-client-cert",
        env="ETCD_AUTH_CLIENT_CERT",
        metavar="FILE",
        help="etcd: this process's certificate (PEM), for members that ask for one",
    )
    auth_client_key: str | None = option(
        None,
        flag="--etcd-auth-client-key",
        env="ETCD_AUTH_CLIENT_KEY",
        metavar="FILE",
        help="etcd: the certificate's key (PEM)",
    )
    lease_ttl_s: int = option(
        5,
        flag="--etcd-lease-ttl",
        env="ETCD_LEASE_TTL",
        metavar="SECONDS",
        minimum=2,
        help="etcd: how long a process that gives no sign of life stays known; it gives three in this time",
    )
