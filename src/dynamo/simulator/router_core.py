"""The router as the simulated cluster sees it, whatever its mode."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from dynamo.protocols.kv_events import KvEventBatch
from dynamo.router.selection import Selector
from dynamo.tokens import TokenArray


class Placement(NamedTuple):
    """A request has found its worker."""

    request_id: int
    worker: int


class RouterCore(Protocol):
    """Decides where requests go. Times are seconds of virtual time."""

    wants_cache_events: bool

    def set_workers(self, workers: Collection[int], now_s: float) -> None:
        """These take requests from now on, and no others. What is known of the others is forgotten."""
        ...

    def submit(self, request_id: int, token_ids: TokenArray, now_s: float, *, prefilled: bool) -> None:
        """A request has arrived; there is a worker. `prefilled`: elsewhere. A known id needs a worker anew."""
        ...

    def first_token(self, request_id: int, now_s: float) -> None:
        """Its prefill is over."""
        ...

    def output(self, request_id: int, tokens: int, now_s: float) -> None:
        """It has `tokens` more output tokens; told in lots, not token by token."""
        ...

    def free(self, request_id: int, now_s: float) -> None:
        """It has ended."""
        ...

    def cache_changed(self, worker: int, batch: KvEventBatch) -> None:
        """A worker's cache has changed."""
        ...

    def take_placed(self) -> list[Placement]:
        """The requests that have found their worker since the last call."""
        ...


class SelectorCore:
    """The modes that look at nothing but the requests in flight."""

    wants_cache_events = False

    def __init__(self, selector: Selector, workers: int) -> None:
        self._selector = selector
        self._workers: Sequence[int] = range(workers)
        self._in_flight: Counter[int] = Counter()
        self._worker_of: dict[int, int] = {}
        self._placed: list[Placement] = []

    def set_workers(self, workers: Collection[int], now_s: float) -> None:
        self._workers = sorted(workers)

    def submit(self, request_id: int, token_ids: TokenArray, now_s: float, *, prefilled: bool) -> None:
        worker = self._selector.pick(self._workers, self._in_flight)
        self._in_flight[worker] += 1
        self._worker_of[request_id] = worker
        self._placed.append(Placement(request_id, worker))

    def first_token(self, request_id: int, now_s: float) -> None:
        pass

    def output(self, request_id: int, tokens: int, now_s: float) -> None:
        pass

    def free(self, request_id: int, now_s: float) -> None:
        self._in_flight[self._worker_of.pop(request_id)] -= 1

    def cache_changed(self, worker: int, batch: KvEventBatch) -> None:
        pass

    def take_placed(self) -> list[Placement]:
        placed, self._placed = self._placed, []
        return placed
