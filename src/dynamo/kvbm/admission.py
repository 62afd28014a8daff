"""Whether a tier is worth waiting for."""

_NEWEST = 0.2  # weight of the newest measurement in a mean
_BACKOFF_MIN_S = 1.0
_BACKOFF_MAX_S = 60.0
_PROBE_EVERY_S = 5.0


class TierCost:
    """What one direction of a tier has cost lately, and whether it is in trouble.

    n blocks are expected to take as long as one does, or n times the time between two arrivals if that is longer.
    A tier that nothing is known of is taken for fast. One that is too slow is tried again now and then with a single
    block; one that fails, too, after a pause that doubles each time.
    """

    def __init__(self) -> None:
        self.latency_s = 0.0
        self.block_s = 0.0
        self._backoff_s = 0.0
        self._retry_at_s = 0.0
        self._probe_at_s = 0.0

    def fitting(self, blocks: int, under_way: int, budget_s: float, now_s: float) -> int:
        """How many of so many blocks are worth asking for, of who waits `budget_s` and comes after `under_way`."""
        if self._backoff_s or self.latency_s > budget_s:
            return min(blocks, 1) if self._takes_probe(now_s) else 0
        if self.block_s <= 0:
            return blocks
        return max(0, min(blocks, int(budget_s / self.block_s) - under_way))

    def is_paused(self, now_s: float) -> bool:
        """Whether it has failed and it is too early to try again."""
        return self._backoff_s > 0 and now_s < self._retry_at_s

    @property
    def has_failed(self) -> bool:
        """Whether the last attempt failed; the next is to be a small one."""
        return self._backoff_s > 0

    @property
    def retry_at_s(self) -> float | None:
        """When to try again after a failure; None without."""
        return self._retry_at_s if self._backoff_s else None

    def took(self, seconds: float, beside: int) -> None:
        """A block has arrived after so long; so many, itself included, were under way with it."""
        self._backoff_s = 0.0
        if not self.latency_s:
            self.latency_s, self.block_s = seconds, seconds / beside
            return
        self.latency_s += _NEWEST * (seconds - self.latency_s)
        self.block_s += _NEWEST * (seconds / beside - self.block_s)

    def overdue(self, seconds: float) -> None:
        """A block that was asked for so long ago has not arrived yet."""
        self.latency_s = max(self.latency_s, self.latency_s + _NEWEST * (seconds - self.latency_s))

    def failed(self, now_s: float) -> None:
        """The tier is in trouble. Failures while it is being left alone are of the same trouble."""
        if self.is_paused(now_s):
            return
        self._backoff_s = min(max(2 * self._backoff_s, _BACKOFF_MIN_S), _BACKOFF_MAX_S)
        self._retry_at_s = now_s + self._backoff_s

    def recovered(self) -> None:
        """It was opened anew: what it was before says nothing."""
        self.latency_s = self.block_s = self._backoff_s = self._probe_at_s = 0.0

    def _takes_probe(self, now_s: float) -> bool:
        if now_s < self._probe_at_s or self.is_paused(now_s):
            return False
        self._probe_at_s = now_s + _PROBE_EVERY_S
        return True
