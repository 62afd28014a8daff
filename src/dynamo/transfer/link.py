"""The two ends of a backend. One conformance suite tests them all."""

from collections.abc import Iterable
from typing import Protocol

from dynamo.transfer.job import Job
from dynamo.transfer.metadata import AgentMetadata, RegionInfo


class Target(Protocol):
    """The end whose memory is read and written."""

    def offer(self, metadata: AgentMetadata) -> None:
        """Says in this agent's metadata how to get there."""
        ...

    def set_key(self, region_id: int, key: int) -> None:
        """The region is registered with this key; with 0 it is no longer."""
        ...

    def close(self) -> None:
        """Peers see ConnectionLostError. Idempotent."""
        ...


class Link(Protocol):
    """The end that reads and writes: the way to one peer, from when it was found to work until close()."""

    name: str
    lanes: int  # jobs that go faster at the same time than one after the other
    inline_bytes_max: int  # so little is copied sooner than a thread would begin; 0: always in a thread

    def reaches(self, regions: Iterable[RegionInfo]) -> bool:
        """Whether it can get at all of them."""
        ...

    def ready(self, regions: Iterable[RegionInfo]) -> bool:
        """Whether copy() need not ask the peer for these first."""
        ...

    def copy(self, job: Job) -> None:
        """Blocks until the job is done, and counts its `done_bytes`.

        Raises what `job.control.check()` raises, ConnectionLostError when the peer is gone, InvalidRequestError for
        what it has not registered. Then some of the bytes may have been copied.
        """
        ...

    def close(self) -> None:
        """Jobs under way end with ConnectionLostError. Idempotent."""
        ...
