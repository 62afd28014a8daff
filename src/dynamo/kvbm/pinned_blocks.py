"""What other hosts may read of a pool: blocks in host memory, pinned meanwhile."""

from collections.abc import Sequence

from dynamo.kvbm.peer_endpoint import Pin
from dynamo.kvbm.pool_shell import PoolShell
from dynamo.kvbm.storage.base import Copy
from dynamo.protocols.kvbm import Found, LookUp, Release, Reply


class PinnedBlocks:
    """As HostBlocks: lookups that do not wait, by a session of its own."""

    def __init__(self, pool: PoolShell) -> None:
        self._pool = pool
        self._session = pool.attach(self._on_reply, fills=False)
        self._next_lookup = 0
        self._found: Found | None = None

    def pin(self, keys: Sequence[bytes]) -> Pin:
        lookup = self._next_lookup
        self._next_lookup += 1
        self._pool.on_request(self._session, LookUp(lookup, b"".join(keys), 0))
        found, self._found = self._found, None
        assert found is not None, "who does not wait is answered at once"
        blocks = [self._pool.manager.on_host(key) for key in keys[: len(found.slots)]]
        copies = [Copy(slot, block) for slot, block in zip(found.slots, blocks, strict=True) if block is not None]
        return Pin(lookup, copies)

    def unpin(self, pin: Pin) -> None:
        self._pool.on_request(self._session, Release([pin.id]))

    def _on_reply(self, reply: Reply) -> None:
        if isinstance(reply, Found):
            self._found = reply
