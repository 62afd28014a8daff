"""What the processes of a deployment know that nobody else does, and how they show it without telling it.

Each end of a connection contributes a nonce. A proof is the HMAC of both, and of which end it comes from, under the
deployment's secret: no proof is good for another connection, and none can be sent back to who has made it.
"""

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dynamo.errors import ConfigError
from dynamo.runtime.mutual_tls import MutualTls

SECRET_VARIABLE = "DYN_REQUEST_PLANE_SECRET"  # noqa: S105 - its name. Not an option: command lines can be read by all
NONCE_BYTES = 32
_SECRET_BYTES_MIN = 16  # who has seen a proof can try out secrets at home: one that people make up is soon found
_SECRET_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What this process shows to those that it connects to and that connect to it, and asks of them."""

    secret: bytes | None = field(default=None, repr=False)  # of the deployment
    tls: MutualTls | None = None


NO_CREDENTIALS = Credentials()


def read_secret(file: str | None, environ: Mapping[str, str]) -> bytes | None:
    """The deployment's secret, without white space around it; None where there is neither file nor variable.

    Raises ConfigError when the file cannot be read, and for a secret that is too short to be one.
    """
    if file is None:
        origin, secret = SECRET_VARIABLE, environ.get(SECRET_VARIABLE, "").encode(errors="surrogateescape").strip()
        if not secret:
            return None
    else:
        origin, secret = file, _content(Path(file))
    if not _SECRET_BYTES_MIN <= len(secret) <= _SECRET_BYTES_MAX:
        raise ConfigError(
            f"the secret in {origin} must have {_SECRET_BYTES_MIN} to {_SECRET_BYTES_MAX} bytes, not {len(secret)}:"
            " `openssl rand -hex 32` makes a good one"
        )
    return secret


def new_nonce() -> bytes:
    return secrets.token_bytes(NONCE_BYTES)


def prove(secret: bytes, end: str, *transcript: bytes) -> bytes:
    """The proof of `end`, such as "the caller", about a connection that `transcript` and nothing else describes."""
    parts = (end.encode(), *transcript)
    return hmac.digest(secret, b"".join(len(part).to_bytes(4, "big") + part for part in parts), "sha256")


def proves(proof: bytes, secret: bytes, end: str, *transcript: bytes) -> bool:
    """Whether `proof` is what prove() gives; how long that takes says nothing about how much of it is right."""
    return hmac.compare_digest(proof, prove(secret, end, *transcript))


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_SECRET_BYTES_MAX + 2).strip()
    except OSError as error:
        raise ConfigError(f"cannot read the secret in {path}: {error.strerror}") from error
