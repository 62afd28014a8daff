"""What a simulated worker tells a router about its cache."""

from collections.abc import Sequence

from dynamo.protocols.kv_events import BlockRemoved, BlockStored, KvEvent, KvEventBatch
from dynamo.tokens import hash_array, hashes_to_bytes


class CacheEvents:
    """A CacheObserver that collects what one step does."""

    def __init__(self) -> None:
        self._events: list[KvEvent] = []

    def stored(self, sequence_hashes: Sequence[int], parent: int | None) -> None:
        self._events.append(BlockStored(hashes=hashes_to_bytes(hash_array(sequence_hashes))))

    def removed(self, sequence_hashes: Sequence[int]) -> None:
        self._events.append(BlockRemoved(hashes=hashes_to_bytes(hash_array(sequence_hashes))))

    def take(self) -> KvEventBatch | None:
        """What was collected since the last call, if anything was."""
        if not self._events:
            return None
        events, self._events = self._events, []
        return KvEventBatch(dp_rank=0, events=events)
