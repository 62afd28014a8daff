"""TLS for HTTP."""

import ssl

from dynamo.runtime.certificate_files import show_certificate


def server_context(cert_path: str, key_path: str) -> ssl.SSLContext:
    """For a server that has this certificate chain and key, both PEM; raises ConfigError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)  # TLS 1.2 or later
    context.set_alpn_protocols(["http/1.1"])
    show_certificate(context, cert_path, key_path)
    return context
