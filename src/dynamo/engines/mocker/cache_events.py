"""What happens to the simulated KV cache and the tiers below it, as events for routers."""

from collections.abc import Sequence

from dynamo.protocols.kv_events import BlockRemoved, BlockStored, KvEvent, Tier
from dynamo.tokens import hash_array, hashes_to_bytes


class CacheEvents:
    """A CacheObserver and TierObserver that collects what it is told, in order, until it is taken."""

    def __init__(self) -> None:
        self._events: list[KvEvent] = []
        self._kind: type[BlockStored | BlockRemoved] = BlockStored  # of what is not an event yet:
        self._tier = Tier.DEVICE
        self._hashes = hash_array()

    def stored(self, sequence_hashes: Sequence[int], parent: int | None) -> None:
        self._add(BlockStored, Tier.DEVICE, sequence_hashes)

    def removed(self, sequence_hashes: Sequence[int]) -> None:
        self._add(BlockRemoved, Tier.DEVICE, sequence_hashes)

    def tier_changed(self, tier: Tier, stored: Sequence[int], removed: Sequence[int]) -> None:
        if stored:
            self._add(BlockStored, tier, stored)
        if removed:
            self._add(BlockRemoved, tier, removed)

    def take(self) -> list[KvEvent]:
        """What has happened since the last time; neighbours of one kind and tier are one event."""
        self._complete()
        events, self._events = self._events, []
        return events

    def _add(self, kind: type[BlockStored | BlockRemoved], tier: Tier, sequence_hashes: Sequence[int]) -> None:
        if kind is not self._kind or tier is not self._tier:
            self._complete()
            self._kind, self._tier = kind, tier
        self._hashes.extend(sequence_hashes)

    def _complete(self) -> None:
        if self._hashes:
            self._events.append(self._kind(hashes_to_bytes(self._hashes), self._tier))
            self._hashes = hash_array()
