"""Where etcd listens, and the certificates for it: what a configuration says, checked."""

import ssl
from urllib.parse import urlsplit

from dynamo.errors import ConfigError
from dynamo.runtime.discovery.etcd_config import EtcdConfig


def endpoint_urls(text: str) -> list[str]:
    """The URLs in a list separated by commas; ConfigError for what is none of etcd's."""
    urls = [url.strip().rstrip("/") for url in text.split(",") if url.strip()]
    for url in urls:
        if not _is_endpoint(url):
            raise ConfigError(f"an endpoint of etcd is written http://host:port or https://host:port, not {url!r}")
    if not urls:
        raise ConfigError("no endpoint of etcd was given: --etcd-endpoints, or ETCD_ENDPOINTS")
    return urls


def _is_endpoint(url: str) -> bool:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises when it is no number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.path and not parts.query


def tls_context(config: EtcdConfig) -> ssl.SSLContext:
    """How connections to etcd are encrypted, and whom they trust; ConfigError for files that cannot be used."""
    if config.auth_client_key and not config.auth_client_cert:
        raise ConfigError("a key for etcd needs its certificate: --etcd-auth-client-cert")
    try:
        context = ssl.create_default_context(cafile=config.auth_ca)
        if config.auth_client_cert:
            context.load_cert_chain(config.auth_client_cert, config.auth_client_key)
    except OSError as error:  # ssl.SSLError is one
        files = ", ".join(filter(None, (config.auth_ca, config.auth_client_cert, config.auth_client_key)))
        raise ConfigError(f"certificates for etcd cannot be used ({files}): {error}") from error
    return context
