"""What the block manager wants done. Pure: a shell does it, and says what came of it."""

from dataclasses import dataclass

from dynamo.kvbm.storage.base import Copy, Stored
from dynamo.protocols.kvbm import StorageTier


@dataclass(frozen=True, slots=True)
class Write:
    """Copy a block down. Its slot keeps it until `BlockManager.written` or `write_failed`."""

    tier: StorageTier
    copy: Copy


@dataclass(frozen=True, slots=True)
class Fetch:
    """Copy a block up, into a slot that is nobody else's until `BlockManager.fetched` or `fetch_failed`."""

    tier: StorageTier
    copy: Copy


@dataclass(frozen=True, slots=True)
class Find:
    """Ask a tier without places how many of these blocks it has, from the first on; then `BlockManager.found`."""

    tier: StorageTier
    lookup: int
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """A block has left a tier's books; its place may be written again at once."""

    tier: StorageTier
    block: Stored


@dataclass(frozen=True, slots=True)
class Answer:
    """To who looked something up, see dynamo.protocols.kvbm.Found."""

    session: int
    lookup: int
    slots: tuple[int, ...]
    coming: int
    tiers: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Grant:
    """To an engine: slots for it to fill."""

    session: int
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """For routers: blocks by name that have come to a tier of this host, or left it."""

    tier: StorageTier
    stored: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()


Effect = Write | Fetch | Find | Forget | Answer | Grant | Change
