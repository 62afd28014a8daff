"""A slot of host memory, and what it holds."""

from enum import Enum, auto


class BlockState(Enum):
    """Where a slot is in its life. It goes from one to the next, and from any back to RESET."""

    RESET = auto()  # nobody's
    PARTIAL = auto()  # somebody fills it: a session that it was granted to, or a tier that it is fetched from
    COMPLETE = auto()  # it is filled, but nobody can find it: it has just come, or was cleared while in use
    REGISTERED = auto()  # it is found under its key


class Block:
    """One slot. Its fields are changed by `HostPool`, and by whoever counts `writes`."""

    __slots__ = ("index", "key", "leaving", "name", "owner", "pins", "state", "writes")

    def __init__(self, index: int) -> None:
        self.index = index
        self.state = BlockState.RESET
        self.key = b""
        self.name = 0
        self.owner: int | None = None  # the session that fills it
        self.pins = 0  # lookups that read it, or wait for it
        self.writes = 0  # copies down that are under way
        self.leaving = False  # chosen to be evicted; it goes when it has been written
