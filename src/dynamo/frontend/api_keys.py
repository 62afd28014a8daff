"""API keys as they are written down: made by `dynamo keys new`, read from --api-keys-file or DYN_API_KEYS.

A key is 256 random bits, so that nobody can find it by trying, however fast the hash is: plain SHA-256 keeps it as well
as the slow hashes do that passwords need, and costs a microsecond per request instead of a tenth of a second.
"""

import hashlib
import logging
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from dynamo.errors import ConfigError
from dynamo.protocols.model_card import Positive

KEY_PREFIX = "sk-dyn-"  # by which scanners for leaked secrets may know one
_KEY_BYTES = 32
_KEY = re.compile(r"[!-~]+")  # what headers carry as it is, whoever writes them

logger = logging.getLogger(__name__)

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key and what it allows; None: as much as there is."""

    name: Name  # for people, and for logs
    sha256: Digest | None = None  # of the key; or else
    key: str | None = None  # itself
    requests_per_minute: Positive | None = None
    concurrent_requests: Positive | None = None
    models: list[str] | None = None

    def digest(self) -> str:
        """Raises ConfigError unless there is one of `sha256` and `key`."""
        if (self.sha256 is None) == (self.key is None):
            raise ConfigError(f"API key {self.name!r}: say either sha256 or key")
        return self.sha256 if self.key is None else key_digest(self.key)  # type: ignore[return-value]


class KeyFile(msgspec.Struct, forbid_unknown_fields=True):
    """What --api-keys-file holds. A misspelt limit would be none: unknown fields are refused."""

    keys: list[KeyEntry]


def new_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def key_digest(key: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def read_key_file(path: Path) -> list[KeyEntry]:
    """The entries of a TOML file, or of a JSON file if its name says so; ConfigError says what is wrong with it."""
    try:
        data = path.read_bytes()
        decode = msgspec.json.decode if path.suffix == ".json" else msgspec.toml.decode
        entries = decode(data, type=KeyFile).keys
    except OSError as error:
        raise ConfigError(f"cannot read the API keys in {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot use the API keys in {path}: {error}") from error
    _check(entries)
    if plain := [entry.name for entry in entries if entry.key is not None]:
        logger.warning(
            "%s holds keys that whoever reads it can use: %s (write down the sha256 of each)", path, ", ".join(plain)
        )
    return entries


def split_keys(text: str) -> list[KeyEntry]:
    """Entries for keys that are listed with commas between them, without any limits; ConfigError where none is."""
    keys = [key for part in text.split(",") if (key := part.strip())]
    entries = [KeyEntry(name=f"key-{i + 1}", key=key) for i, key in enumerate(keys)]
    _check(entries)
    return entries


def _check(entries: Sequence[KeyEntry]) -> None:
    """Raises ConfigError. No key at all is an error too: it would lock everybody out, or, worse, nobody."""
    if not entries:
        raise ConfigError("there is no API key")
    for entry in entries:
        if entry.key is not None and not _KEY.fullmatch(entry.key):
            raise ConfigError(f"API key {entry.name!r}: a key is printable ASCII without spaces")
    for what, values in (
        ("name", [entry.name for entry in entries]),
        ("key", [entry.digest() for entry in entries]),
    ):
        if len(set(values)) < len(values):
            raise ConfigError(f"two API keys have the same {what}")
