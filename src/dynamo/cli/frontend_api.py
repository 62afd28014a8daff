"""What the supervisor asks the frontend that it has started."""

import contextlib
import urllib.request
from urllib.parse import quote, urlsplit, urlunsplit

from dynamo.cli.status import Figures

_TIMEOUT_S = 2.0
_LOCAL_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - how to reach ourselves
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this host, whatever $http_proxy says


def reachable_url(url: str) -> str:
    """`url`, of an address to listen on, as an address to connect to."""
    parts = urlsplit(url)
    host = _LOCAL_HOSTS.get(parts.hostname or "", parts.hostname or "")
    return urlunsplit(parts._replace(netloc=f"[{host}]:{parts.port}" if ":" in host else f"{host}:{parts.port}"))


def serves(url: str, model: str) -> bool:
    """Whether requests to `model` can be answered. Blocks."""
    return _get(f"{url}/v1/models/{quote(model, safe='')}") is not None


def read_figures(url: str) -> Figures | None:
    """None when there is no answer. Blocks."""
    metrics = _get(f"{url}/metrics")
    return None if metrics is None else Figures.parse(metrics)


def _get(url: str) -> str | None:
    with contextlib.suppress(OSError), _OPENER.open(url, timeout=_TIMEOUT_S) as response:
        text: str = response.read().decode()
        return text
    return None
