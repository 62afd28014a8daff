"""Whether this process lives, and whether it can serve."""

import time


class Health:
    """Readiness of one process: ready once everything that it announced is being served."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._ready = False
        self._endpoints: dict[str, bool] = {}

    @property
    def ready(self) -> bool:
        return self._ready and all(self._endpoints.values())

    @property
    def endpoints(self) -> dict[str, bool]:
        """Each endpoint of this process and whether it takes requests."""
        return dict(self._endpoints)

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._started_s

    def set_ready(self, ready: bool) -> None:
        self._ready = ready

    def set_endpoint(self, endpoint: str, serving: bool) -> None:
        self._endpoints[endpoint] = serving
        self._ready = self._ready or serving

    def forget_endpoint(self, endpoint: str) -> None:
        """It is not this process's any more."""
        self._endpoints.pop(endpoint, None)
