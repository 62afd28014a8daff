"""The side that offers its memory: it waits until the other side says that it is done."""

import asyncio
import uuid
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Self

from dynamo.nixl_connect.descriptor import Descriptor, as_list
from dynamo.nixl_connect.metadata import OperationKind, RdmaMetadata, encode_agent
from dynamo.nixl_connect.status import OperationStatus

if TYPE_CHECKING:
    from dynamo.nixl_connect.connector import Connector


class PassiveOperation:
    """Its memory can be reached for as long as the descriptors live.

    Awaiting it gives itself, for that is how some releases of upstream's have it.
    """

    kind: OperationKind

    def __init__(self, connector: "Connector", local_descriptors: Descriptor | Sequence[Descriptor]) -> None:
        """Raises TypeError, ValueError for what are no descriptors, and what Agent.register raises."""
        self.connector = connector
        self._descriptors = as_list(local_descriptors)
        self._key = str(uuid.uuid4())
        self._done = asyncio.Event()
        self._status = OperationStatus.UNINITIALIZED
        if connector.is_initialized:
            self._offer()

    def __await__(self) -> Generator[Any, None, Self]:
        yield from self.connector.initialize().__await__()
        if self._status is OperationStatus.UNINITIALIZED:
            self._offer()
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_up()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._descriptors}, status={self._status})"

    @property
    def operation_kind(self) -> OperationKind:
        return self.kind

    @property
    def status(self) -> OperationStatus:
        return self._status

    def metadata(self) -> RdmaMetadata:
        """What the other side needs. Raises RuntimeError when the connector was not initialized."""
        if self._status is OperationStatus.UNINITIALIZED:
            raise RuntimeError("await the operation, or Connector.initialize() before it was made")
        agent = self.connector.agent
        regions = [descriptor.region(agent) for descriptor in self._descriptors]
        return RdmaMetadata(
            descriptors=[descriptor.metadata() for descriptor in self._descriptors],
            nixl_metadata=encode_agent(agent.metadata(regions)),
            notification_key=self._key,
            operation_kind=int(self.kind),
        )

    async def wait_for_completion(self) -> None:
        """For as long as the caller waits: a peer that died says nothing. Returns as well when it was given up."""
        await self._done.wait()

    def give_up(self) -> None:
        """Waits no more, if it does."""
        if self._status is not OperationStatus.COMPLETE:
            self._end(OperationStatus.CANCELLED)

    def completed(self) -> None:
        """The other side has said so."""
        if self._status is OperationStatus.INITIALIZED:
            self._end(OperationStatus.COMPLETE)

    def _offer(self) -> None:
        for descriptor in self._descriptors:
            descriptor.region(self.connector.agent)
        self.connector.expect(self._key, self)
        self._status = OperationStatus.INITIALIZED

    def _end(self, status: OperationStatus) -> None:
        self._status = status
        self._done.set()


class ReadableOperation(PassiveOperation):
    """Memory for a peer's ReadOperation."""

    kind = OperationKind.READ


class WritableOperation(PassiveOperation):
    """Memory for a peer's WriteOperation."""

    kind = OperationKind.WRITE
