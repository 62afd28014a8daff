"""Requests that wait for a worker, in the order in which they will go. Pure."""

import heapq
import itertools
from dataclasses import dataclass, field

from dynamo.router.config import QueuePolicy
from dynamo.router.routing import RoutingRequest

_WITHDRAWN_MAX = 64  # more than so many, and than those that wait, are cleared away


@dataclass(slots=True, order=True)
class _Entry:
    key: float
    number: int  # equal keys: by arrival, as the policy has it
    request: RoutingRequest | None = field(compare=False)  # None: it has been withdrawn


class RequestQueue:
    """Holds at most `size_max` requests."""

    def __init__(self, policy: QueuePolicy, size_max: int) -> None:
        self._policy = policy
        self._size_max = size_max
        self._heap: list[_Entry] = []
        self._entries: dict[str, _Entry] = {}  # by request id
        self._numbers = itertools.count(step=-1 if policy is QueuePolicy.LCFS else 1)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def full(self) -> bool:
        return len(self._entries) >= self._size_max

    def push(self, request: RoutingRequest, prefill_tokens: int) -> None:
        """The queue is not full, and no request with this id waits. `prefill_tokens`: on its best worker."""
        assert not self.full
        assert request.request_id not in self._entries
        entry = _Entry(self._key(request, prefill_tokens), next(self._numbers), request)
        self._entries[request.request_id] = entry
        heapq.heappush(self._heap, entry)

    def peek(self) -> RoutingRequest | None:
        """The one that goes next."""
        while self._heap and self._heap[0].request is None:
            heapq.heappop(self._heap)
        return self._heap[0].request if self._heap else None

    def remove(self, request_id: str) -> bool:
        """Whether it was there."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return False
        entry.request = None
        if len(self._heap) > 2 * len(self._entries) + _WITHDRAWN_MAX:
            self._heap = [e for e in self._heap if e.request is not None]
            heapq.heapify(self._heap)
        return True

    def _key(self, request: RoutingRequest, prefill_tokens: int) -> float:
        """Lowest first. A priority is seconds of head start, or a factor for the weight."""
        priority = request.priority
        if self._policy is QueuePolicy.FCFS:
            return request.arrived_s - priority
        if self._policy is QueuePolicy.LCFS:
            return -(request.arrived_s + priority)
        weight = 1 + priority if priority >= 0 else 1 / (1 - priority)
        return -weight / max(prefill_tokens, 1)
