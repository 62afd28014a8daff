"""How the KV cache of a prompt gets from worker to worker: what is asked of the ways to do it, or to pretend to."""

from typing import Protocol

from dynamo.engines.mocker.handoff import Begin, Grant
from dynamo.engines.mocker.sequence import SequenceState


class KvTransport(Protocol):
    """One worker's end of it."""

    @property
    def notices_loss(self) -> bool:
        """Whether fetch() fails when the holder is gone before all is here."""
        ...

    def start(self) -> None:
        """Called once its agent has started."""
        ...

    async def close(self) -> None:
        """Idempotent, and possible without start()."""
        ...

    async def prepare(self, sequence: SequenceState) -> None:
        """Called with a prompt that was prefilled: makes it ready for others to fetch."""
        ...

    def grant(self, sequence: SequenceState, begin: Begin, lease_s: float) -> Grant:
        """Somebody begins to fetch what was prepared, within `lease_s`."""
        ...

    def release(self, sequence: SequenceState) -> None:
        """Nobody will fetch what was prepared, or has begun to be, any more."""
        ...

    async def fetch(self, sequence: SequenceState, begin: Begin, grant: Grant, deadline_s: float) -> int:
        """Returns when all is here that `begin` asks for: how many bytes. `deadline_s`: of time.monotonic().

        Raises DynamoError. When it has ended, in whatever way, it writes nowhere any more.
        """
        ...
