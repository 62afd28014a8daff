"""Blocks on their way up."""

from collections.abc import Mapping

from dynamo.kvbm.effects import Effect, Fetch
from dynamo.kvbm.lookups import Arrival
from dynamo.kvbm.room import Room
from dynamo.kvbm.storage.base import Copy, Stored
from dynamo.kvbm.tier import LowerTier
from dynamo.protocols.kvbm import StorageTier


class Arrivals:
    """Fetches that have not ended, at most `fetches_max`, no two of them of the same block for anyone to wait for."""

    def __init__(
        self, tiers: Mapping[StorageTier, LowerTier], room: Room, effects: list[Effect], *, fetches_max: int
    ) -> None:
        self._tiers = tiers
        self._room = room
        self._effects = effects
        self._fetches_max = fetches_max
        self._by_slot: dict[int, Arrival] = {}
        self._by_key: dict[bytes, Arrival] = {}  # without those that nobody wants any more

    def __len__(self) -> int:
        return len(self._by_slot)

    @property
    def is_full(self) -> bool:
        """Whether the next has to wait for one to end."""
        return len(self._by_slot) >= self._fetches_max

    def get(self, key: bytes) -> Arrival | None:
        """The fetch of this block that is under way."""
        return self._by_key.get(key)

    def fetch(self, of: StorageTier, key: bytes, now_s: float) -> Arrival | None:
        """Begins to fetch a block; None if it is not there any more or there is no slot for it."""
        tier = self._tiers[of]
        stored = tier.books.get(key)
        if stored is None and not tier.is_known:
            stored = Stored(key, 0)  # its header has its name
        if stored is None or not tier.is_ready or tier.books.is_reading(key):
            return None
        tier.books.begin_read(stored)  # before room is made: that may need its place
        block = self._room.take(now_s)
        if block is None:
            tier.books.end_read(key, good=True)
            return None
        block.key = key
        arrival = Arrival(block=block, tier=of, stored=stored, begun_s=now_s, beside=len(self) + 1)
        self._by_slot[block.index] = self._by_key[key] = arrival
        self._effects.append(Fetch(of, Copy(block.index, stored)))
        return arrival

    def end(self, slot: int) -> Arrival:
        """A fetch has ended. KeyError if there was none into this slot."""
        arrival = self._by_slot.pop(slot)
        if arrival.is_wanted:
            del self._by_key[arrival.stored.key]
        return arrival

    def refuse(self) -> None:
        """What is under way is not to be kept."""
        for arrival in self._by_key.values():
            arrival.is_wanted = False
        self._by_key.clear()
