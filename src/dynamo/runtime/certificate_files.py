"""Certificates and keys in files (PEM), and what is wrong with them."""

import ssl

from dynamo.errors import ConfigError


def show_certificate(context: ssl.SSLContext, cert: str, key: str | None) -> None:
    """Shows the certificate in `cert`, with its chain, to the other end; without `key` its key is there too.

    Raises ConfigError.
    """
    files = cert if key is None else f"{cert} and {key}"
    try:
        context.load_cert_chain(cert, key, password=_refuse)
    except ssl.SSLError as error:
        raise ConfigError(f"no certificate with its key in {files}: {error.reason or error}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {files}: {error.strerror}") from error


def trust_authority(context: ssl.SSLContext, ca: str) -> None:
    """Accepts what the authorities in `ca` have signed. Raises ConfigError."""
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise ConfigError(f"no certificate of an authority in {ca}: {error.reason or error}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {ca}: {error.strerror}") from error


def _refuse() -> str:
    """OpenSSL would ask the terminal otherwise, and wait."""
    raise ConfigError("the private key has a password: that is not supported")
