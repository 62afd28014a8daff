"""Where the NATS servers are, and what is shown to them, from what a person writes."""

from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

from dynamo.errors import ConfigError

_PORT = 4222


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsServers:
    """The servers of one cluster. What they are shown is never part of what is printed."""

    urls: tuple[str, ...]  # without user, password and token
    tls: bool
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return ", ".join(self.urls)

    @classmethod
    def parse(cls, text: str) -> "NatsServers":
        """From "nats://host:port", or several of them with commas in between; "tls://" never goes unencrypted.

        The first that holds "user:password@" or "token@", with % where a character would have a meaning, says it for
        all. Raises ConfigError, which does not repeat what may be a secret.
        """
        parts = [_split(url.strip()) for url in text.split(",")]
        if len({part.scheme for part in parts}) != 1:
            raise ConfigError("NATS servers are either all nats:// or all tls://")
        user = password = token = None
        shown = next((part for part in parts if part.username), None)
        if shown is not None and shown.password is not None:
            user, password = unquote(shown.username or ""), unquote(shown.password)
        elif shown is not None:
            token = unquote(shown.username or "")
        return cls(
            urls=tuple(_without_secrets(part) for part in parts),
            tls=parts[0].scheme == "tls",
            user=user,
            password=password,
            token=token,
        )


def _split(url: str) -> SplitResult:
    """Raises ConfigError."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("nats", "tls") and bool(parts.hostname) and parts.port != 0
        usable = usable and parts.path in ("", "/") and not parts.query and not parts.fragment
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError("a NATS server is written nats://host:port, or tls:// with [user:password@] or [token@]")
    return parts


def _without_secrets(parts: SplitResult) -> str:
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or _PORT}"
