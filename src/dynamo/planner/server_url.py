"""The address of an HTTP server, as somebody has typed it."""

from urllib.parse import urlsplit

from dynamo.errors import ConfigError


def server_url(url: str, flag: str) -> str:
    """The URL without a slash at its end. Raises ConfigError, naming the flag, for what nobody could connect to."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")  # too long a label, or an empty one
        is_one = bool(host) and url.startswith(("http://", "https://")) and parts.port != 0
    except ValueError:  # brackets that are not closed, a port that is none
        is_one = False
    if not is_one or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise ConfigError(f"{flag} is written http(s)://host:port, not {url!r}")
    if parts.username is not None:
        raise ConfigError(f"{flag} cannot hold a user's name and password")
    return url.rstrip("/")
