"""How much memory the bodies of all requests may take together."""

from collections.abc import Iterator
from contextlib import contextmanager

from dynamo.errors import OverloadedError


class HeldBody:
    """What one request has of the budget."""

    __slots__ = ("_budget", "size_bytes")

    def __init__(self, budget: "BodyBudget") -> None:
        self._budget = budget
        self.size_bytes = 0

    def grow(self, size_bytes: int) -> None:
        """Raises OverloadedError where there is not so much left."""
        self._budget.take(size_bytes)
        self.size_bytes += size_bytes


class BodyBudget:
    """Each body alone may be large, and there may be many: not both."""

    def __init__(self, limit_bytes: int) -> None:
        self._left_bytes = limit_bytes

    @property
    def left_bytes(self) -> int:
        return self._left_bytes

    @contextmanager
    def hold(self) -> Iterator[HeldBody]:
        """For a request from its first byte until it ends."""
        held = HeldBody(self)
        try:
            yield held
        finally:
            self._left_bytes += held.size_bytes

    def take(self, size_bytes: int) -> None:
        if size_bytes > self._left_bytes:
            raise OverloadedError("the requests under way are too large to take another one")
        self._left_bytes -= size_bytes
