"""What happens to the simulated KV cache, as events for routers."""

from collections.abc import Sequence

from dynamo.protocols.kv_events import BlockRemoved, BlockStored, KvEvent
from dynamo.tokens import hash_array, hashes_to_bytes


class CacheEvents:
    """A CacheObserver that collects what it is told, in order, until it is taken."""

    def __init__(self) -> None:
        self._events: list[KvEvent] = []
        self._kind: type[BlockStored | BlockRemoved] = BlockStored  # of what is not an event yet:
        self._hashes = hash_array()

    def stored(self, sequence_hashes: Sequence[int], parent: int | None) -> None:
        self._add(BlockStored, sequence_hashes)

    def removed(self, sequence_hashes: Sequence[int]) -> None:
        self._add(BlockRemoved, sequence_hashes)

    def take(self) -> list[KvEvent]:
        """What has happened since the last time; neighbours of one kind are one event."""
        self._complete()
        events, self._events = self._events, []
        return events

    def _add(self, kind: type[BlockStored | BlockRemoved], sequence_hashes: Sequence[int]) -> None:
        if kind is not self._kind:
            self._complete()
            self._kind = kind
        self._hashes.extend(sequence_hashes)

    def _complete(self) -> None:
        if self._hashes:
            self._events.append(self._kind(hashes_to_bytes(self._hashes)))
            self._hashes = hash_array()
