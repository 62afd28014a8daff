"""What the supervisor asks the frontend that it has started."""

import contextlib
import ssl
import urllib.request
from urllib.parse import urlsplit, urlunsplit

import msgspec

from dynamo.cli.status import Figures

_TIMEOUT_S = 2.0
_LOCAL_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - how to reach ourselves
_OPENER = urllib.request.build_opener(
    urllib.request.ProxyHandler({}),  # it is on this host, whatever $http_proxy says
    # Its certificate is for the name that clients know it by. Nothing is told to it that others must not know.
    urllib.request.HTTPSHandler(context=ssl._create_unverified_context()),  # noqa: S323
)


class _Health(msgspec.Struct):
    models: list[str]


def reachable_url(url: str) -> str:
    """`url`, of an address to listen on, as an address to connect to."""
    parts = urlsplit(url)
    host = _LOCAL_HOSTS.get(parts.hostname or "", parts.hostname or "")
    return urlunsplit(parts._replace(netloc=f"[{host}]:{parts.port}" if ":" in host else f"{host}:{parts.port}"))


def serves(url: str, model: str) -> bool:
    """Whether requests to `model` can be answered. Blocks."""
    health = _get(f"{url}/health")  # which needs no API key
    return health is not None and model in msgspec.json.decode(health, type=_Health).models


def read_figures(url: str) -> Figures | None:
    """None when there is no answer. Blocks."""
    metrics = _get(f"{url}/metrics")
    return None if metrics is None else Figures.parse(metrics)


def _get(url: str) -> str | None:
    with contextlib.suppress(OSError), _OPENER.open(url, timeout=_TIMEOUT_S) as response:
        text: str = response.read().decode()
        return text
    return None
