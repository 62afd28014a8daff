"""What routers are told of a tier: names that come to it and leave it."""

from dynamo.kvbm.effects import Change
from dynamo.protocols.kvbm import StorageTier


class NameChanges:
    """Counts the blocks of each name in one tier, and sums up what has changed since last asked.

    Two blocks can have one name, since names are shorter than keys: it has left when both have.
    """

    def __init__(self, tier: StorageTier) -> None:
        self._tier = tier
        self._blocks: dict[int, int] = {}
        self._before: dict[int, bool] = {}  # changed names -> whether they were there when last asked

    def add(self, name: int) -> None:
        """A block of this name has come."""
        count = self._blocks.get(name, 0)
        self._blocks[name] = count + 1
        if not count:
            self._before.setdefault(name, False)

    def remove(self, name: int) -> None:
        """A block of this name has left."""
        count = self._blocks[name] - 1
        if count:
            self._blocks[name] = count
            return
        del self._blocks[name]
        self._before.setdefault(name, True)

    def take(self) -> Change | None:
        """None if nothing has changed."""
        if not self._before:
            return None
        stored = tuple(name for name, before in self._before.items() if not before and name in self._blocks)
        removed = tuple(name for name, before in self._before.items() if before and name not in self._blocks)
        self._before.clear()
        return Change(self._tier, stored, removed) if stored or removed else None
