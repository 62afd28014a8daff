"""How much one key may be used: requests per minute and at a time. Pure: told the time, not asking for it."""

from dynamo.errors import RateLimitedError

_CONCURRENCY_RETRY_S = 1.0  # nobody knows when one of the running requests will end


class TokenBucket:
    """Grants `per_minute` uses a minute on the long run, and up to as many at once after a minute of rest."""

    __slots__ = ("_left", "_per_s", "_size", "_updated_s")

    def __init__(self, per_minute: int, now_s: float) -> None:
        self._size = float(per_minute)
        self._per_s = per_minute / 60
        self._left = self._size
        self._updated_s = now_s

    def take(self, now_s: float) -> float:
        """0 where the use is granted, otherwise the seconds until one will be."""
        self._left = min(self._size, self._left + max(0.0, now_s - self._updated_s) * self._per_s)
        self._updated_s = now_s
        if self._left < 1:
            return (1 - self._left) / self._per_s
        self._left -= 1
        return 0.0


class KeyLimits:
    """What a key has left. None: without limit."""

    def __init__(self, requests_per_minute: int | None, concurrent_requests: int | None, now_s: float) -> None:
        self.requests_per_minute = requests_per_minute
        self.concurrent_requests = concurrent_requests
        self.running = 0
        self._bucket = None if requests_per_minute is None else TokenBucket(requests_per_minute, now_s)

    def change(self, requests_per_minute: int | None, concurrent_requests: int | None, now_s: float) -> None:
        """What is running counts on; a new rate begins with a full bucket."""
        self.concurrent_requests = concurrent_requests
        if requests_per_minute != self.requests_per_minute:
            self.requests_per_minute = requests_per_minute
            self._bucket = None if requests_per_minute is None else TokenBucket(requests_per_minute, now_s)

    def enter(self, now_s: float) -> None:
        """A request begins, and leave() follows; or RateLimitedError. One that is refused uses nothing up."""
        if self.concurrent_requests is not None and self.running >= self.concurrent_requests:
            raise RateLimitedError(
                f"this key has {self.running} requests running, as many as it may",
                retry_after_s=_CONCURRENCY_RETRY_S,
            )
        wait_s = 0.0 if self._bucket is None else self._bucket.take(now_s)
        if wait_s > 0:
            raise RateLimitedError(
                f"this key may make {self.requests_per_minute} requests per minute", retry_after_s=wait_s
            )
        self.running += 1

    def leave(self) -> None:
        self.running -= 1
