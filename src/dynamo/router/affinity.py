"""Which worker a session was last sent to. Pure."""

from collections import OrderedDict

from dynamo.protocols.generation import WorkerId

SESSIONS_MAX = 100_000


class Sessions:
    """Forgets a session `ttl_s` after its latest request, and the oldest ones beyond `size_max`."""

    def __init__(self, ttl_s: float, size_max: int = SESSIONS_MAX) -> None:
        self._ttl_s = ttl_s
        self._size_max = size_max
        self._workers: OrderedDict[str, tuple[WorkerId, float]] = OrderedDict()  # used longest ago first

    def __len__(self) -> int:
        return len(self._workers)

    def worker(self, session_id: str, now_s: float) -> WorkerId | None:
        """None where the session is new, or forgotten."""
        found = self._workers.get(session_id)
        return found[0] if found is not None and now_s - found[1] < self._ttl_s else None

    def put(self, session_id: str, worker: WorkerId, now_s: float) -> None:
        """A request of the session goes to `worker`."""
        workers = self._workers
        workers[session_id] = (worker, now_s)
        workers.move_to_end(session_id)
        while workers and (len(workers) > self._size_max or now_s - self._oldest_s() >= self._ttl_s):
            workers.popitem(last=False)

    def _oldest_s(self) -> float:
        return next(iter(self._workers.values()))[1]
