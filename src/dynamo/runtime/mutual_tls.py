"""TLS between the processes of a deployment: each end has a certificate of one authority, which is theirs alone.

A certificate says that a process belongs to the deployment, not where it runs: names in it are not compared with
addresses, which come and go with pods and hosts.
"""

import ssl
from dataclasses import dataclass

from dynamo.runtime.certificate_files import show_certificate, trust_authority


@dataclass(frozen=True, slots=True, kw_only=True)
class MutualTls:
    """For connections that come in, and those that go out."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def mutual_tls(cert: str, key: str, ca: str) -> MutualTls:
    """PEM files: this process's certificate with its chain, its key, and the authority. Raises ConfigError."""
    return MutualTls(
        server=_context(ssl.PROTOCOL_TLS_SERVER, cert, key, ca),
        client=_context(ssl.PROTOCOL_TLS_CLIENT, cert, key, ca),
    )


def _context(protocol: int, cert: str, key: str, ca: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    show_certificate(context, cert, key)
    trust_authority(context, ca)
    return context
