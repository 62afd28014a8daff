"""What a link is asked to do: copy these pieces, as long as it is wanted. For threads."""

import time
from dataclasses import dataclass, field, replace
from threading import Event

from dynamo.errors import DeadlineExceededError, RequestCancelledError
from dynamo.transfer.metadata import RegionInfo
from dynamo.transfer.vector import Vector

_PART_BYTES_MIN = 4 << 20  # what takes a millisecond is not worth another thread

RegionKey = tuple[int, int]  # a region's id, and what tells it from others that had the id before


class Flag:
    """As much of a threading.Event as nobody waits for: one for each transfer is made in no time."""

    __slots__ = ("_set",)

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set


@dataclass(slots=True, kw_only=True, eq=False)
class Control:
    """Whether a transfer is still wanted; shared by all its jobs."""

    deadline_s: float  # on time.monotonic()
    cancelled: Flag | Event = field(default_factory=Flag)

    def check(self) -> None:
        """Raises RequestCancelledError or DeadlineExceededError."""
        if self.cancelled.is_set():
            raise RequestCancelledError("the transfer was cancelled")
        if time.monotonic() >= self.deadline_s:
            raise DeadlineExceededError("the transfer's deadline passed")


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """Copies the pieces of `remote` to those of `local`, which have the same sizes, or with `write` the other way."""

    write: bool
    local: Vector
    remote: Vector
    regions: tuple[RegionInfo, ...]  # of `remote`
    control: Control
    keep: object = None  # what holds the local memory
    local_gpu: int | None = None  # whose memory it is, if it is not the host's
    remote_gpu: int | None = None
    done_bytes: int = 0

    @property
    def keys(self) -> tuple[RegionKey, ...]:
        """Of the regions of `remote`."""
        return tuple((region.id, region.key) for region in self.regions)

    def parts(self, count: int) -> "list[Job]":
        """The same work in at most `count` jobs, of some size each."""
        local = self.local.parts(min(count, 1 + self.local.size_bytes // _PART_BYTES_MIN))
        remote = self.remote.split(map(len, local))
        return [replace(self, local=here, remote=there) for here, there in zip(local, remote, strict=True)]
