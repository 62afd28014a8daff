"""What the block manager asks of a tier below host memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from dynamo.protocols.kvbm import StorageTier


@dataclass(frozen=True, slots=True)
class Stored:
    """A block and where it lies: `place` is a number below the tier's capacity, None where it has none."""

    key: bytes
    name: int  # as routers know it
    place: int | None = None


@dataclass(frozen=True, slots=True)
class Copy:
    """A block, and the host slot that it is copied from or to."""

    slot: int
    block: Stored


class Outcome(Enum):
    """What has become of a block that was to be read. Only after READ may its slot be used."""

    READ = auto()
    ABSENT = auto()
    CORRUPT = auto()  # it is there, but not what was written


class Storage(Protocol):
    """Moves blocks between host slots and one tier, for one pool.

    A call that fails as a whole raises a DynamoError: nothing that it was to do counts as done. It ends soon after it
    was cancelled, and moves no more bytes then. Calls may overlap, but not on the same block, place or slot.
    """

    tier: StorageTier
    capacity: int | None  # blocks; None: as many as one likes, they have no places

    async def open(self) -> list[Stored]:
        """What it holds from earlier, as far as that can be listed. Also after a failure, to try again."""
        ...

    async def write(self, copies: Sequence[Copy]) -> None:
        """Copies blocks down, over what was at their places."""
        ...

    async def read(self, copies: Sequence[Copy]) -> list[Outcome]:
        """Copies blocks up, and verifies each."""
        ...

    async def forget(self, blocks: Sequence[Stored]) -> None:
        """They will not be found after the next open(), nor by others."""
        ...

    async def find(self, keys: Sequence[bytes]) -> int:
        """How many of these, from the first on, there are. Only of tiers without places: of others one knows."""
        ...

    async def clear(self) -> None:
        """Holds nothing any more, of this pool."""
        ...

    async def close(self) -> None:
        """Idempotent."""
        ...
