"""The way to one peer's memory. One class per backend implements it; one conformance suite tests them all."""

from typing import Protocol

from dynamo.transfer.job import Job


class Link(Protocol):
    """To one peer, from when it was found to work until close()."""

    name: str
    lanes: int  # jobs that go faster at the same time than one after the other
    inline_bytes_max: int  # so little is copied sooner than a thread would begin; 0: always in a thread

    def copy(self, job: Job) -> None:
        """Blocks until the job is done, and counts its `done_bytes`.

        Raises what `job.control.check()` raises, ConnectionLostError when the peer is gone, InvalidRequestError for
        what it has not registered. Then some of the bytes may have been copied.
        """
        ...

    def close(self) -> None:
        """Jobs under way end with ConnectionLostError. Idempotent."""
        ...
