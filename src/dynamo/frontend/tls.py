"""TLS for HTTP."""

import ssl

from dynamo.errors import ConfigError


def server_context(cert_path: str, key_path: str) -> ssl.SSLContext:
    """For a server that has this certificate chain and key, both PEM; raises ConfigError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)  # TLS 1.2 or later
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert_path, key_path, password=_refuse)
    except ssl.SSLError as error:
        raise ConfigError(
            f"{cert_path} and {key_path} are no certificate with its key: {error.reason or error}"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read {cert_path} or {key_path}: {error.strerror}") from error
    return context


def _refuse() -> str:
    """OpenSSL would ask the terminal otherwise, and wait."""
    raise ConfigError("the private key has a password: that is not supported")
