"""How long to wait before the next try."""

import random


class Backoff:
    """Delays that double from `min_s` to `max_s`. Each is cut by up to half, so that a fleet does not retry in step."""

    def __init__(self, min_s: float, max_s: float) -> None:
        self._min_s = min_s
        self.max_s = max_s
        self._next_s = min_s

    def next_s(self) -> float:
        delay_s = self._next_s
        self._next_s = min(2 * delay_s, self.max_s)
        return delay_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret

    def reset(self) -> None:
        """After a success."""
        self._next_s = self._min_s
