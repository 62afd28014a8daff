"""The side that reads or writes the memory of the other: it begins at once, and tells the other when it is done."""

import asyncio
import functools
import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self

from dynamo.errors import DynamoError, RequestCancelledError
from dynamo.nixl_connect.descriptor import Descriptor, as_list
from dynamo.nixl_connect.metadata import OperationKind, RdmaMetadata, SerializedDescriptor, decode_agent
from dynamo.nixl_connect.status import OperationStatus
from dynamo.transfer import Blocks
from dynamo.transfer.metadata import AgentMetadata, RegionInfo

if TYPE_CHECKING:
    from dynamo.nixl_connect.connector import Connector


class ActiveOperation:
    kind: OperationKind

    def __init__(
        self, connector: "Connector", local_descriptors: Descriptor | Sequence[Descriptor], metadata: RdmaMetadata
    ) -> None:
        """Raises TypeError, ValueError for what does not fit, RuntimeError before Connector.initialize(), and what
        Agent.read and Agent.write raise at once.
        """
        if not isinstance(metadata, RdmaMetadata):
            raise TypeError("the remote metadata is a RdmaMetadata")
        if metadata.operation_kind != self.kind:
            raise ValueError(
                f"the remote operation is one to {OperationKind(metadata.operation_kind)}, not {self.kind}"
            )
        self.connector = connector
        self._descriptors = as_list(local_descriptors)
        sizes = [each.size for each in metadata.descriptors]
        if sizes != [each.size for each in self._descriptors]:
            raise ValueError("local and remote descriptors differ in number or in size")
        agent, agent_metadata = connector.agent, decode_agent(metadata.nixl_metadata)
        local = _joined(each.region(agent).all() for each in self._descriptors)
        remote = _remote(AgentMetadata.decode(agent_metadata), metadata.descriptors)
        self._peer = agent.add_peer(agent_metadata)
        begin = agent.read if self.kind is OperationKind.READ else agent.write
        self._transfer = begin(local, remote, timeout_s=connector.timeout_s)
        self._error: DynamoError | None = None
        self._task = asyncio.create_task(self._run(metadata.notification_key), name=f"nixl-connect-{self.kind}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Cancels what is under way."""
        self.cancel()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._descriptors}, peer={self._peer!r}, status={self.status})"

    @property
    def operation_kind(self) -> OperationKind:
        return self.kind

    @property
    def status(self) -> OperationStatus:
        if not self._task.done():
            return OperationStatus.IN_PROGRESS
        if self._error is None:
            return OperationStatus.COMPLETE
        cancelled = isinstance(self._error, RequestCancelledError)
        return OperationStatus.CANCELLED if cancelled else OperationStatus.ERRORED

    def cancel(self) -> None:
        """Asks for an early end: the memory is the caller's again after wait_for_completion(). Idempotent."""
        self._transfer.cancel()

    async def wait_for_completion(self) -> None:
        """Until the bytes are there and the peer knows it, or it was cancelled. Raises the DynamoError of a failure."""
        await asyncio.wait([self._task])
        if self.status is OperationStatus.ERRORED:
            assert self._error is not None
            raise self._error

    async def _run(self, key: str) -> None:
        try:
            await self._transfer
            await self.connector.agent.notify(self._peer, key.encode(), timeout_s=self.connector.timeout_s)
        except DynamoError as error:
            self._error = error


class ReadOperation(ActiveOperation):
    """Copies the memory of a peer's ReadableOperation here."""

    kind = OperationKind.READ

    def __init__(
        self,
        connector: "Connector",
        remote_metadata: RdmaMetadata,
        local_descriptors: Descriptor | Sequence[Descriptor],
    ) -> None:
        super().__init__(connector, local_descriptors, remote_metadata)

    def results(self) -> list[Descriptor]:
        """What has been read. Raises RuntimeError before it is complete."""
        if self.status is not OperationStatus.COMPLETE:
            raise RuntimeError("the operation is not complete")
        return self._descriptors


class WriteOperation(ActiveOperation):
    """Copies memory into that of a peer's WritableOperation."""

    kind = OperationKind.WRITE

    def __init__(
        self,
        connector: "Connector",
        local_descriptors: Descriptor | Sequence[Descriptor],
        remote_metadata: RdmaMetadata,
    ) -> None:
        super().__init__(connector, local_descriptors, remote_metadata)


def _remote(peer: AgentMetadata, descriptors: list[SerializedDescriptor]) -> Blocks:
    """Raises ValueError for memory that the metadata does not cover."""
    return _joined(_block(peer.name, peer.regions, each) for each in descriptors)


def _block(peer: str, regions: list[RegionInfo], descriptor: SerializedDescriptor) -> Blocks:
    for region in regions:
        offset = descriptor.ptr - region.address
        if offset >= 0 and offset + descriptor.size <= region.size_bytes:
            return Blocks.of(peer, region.id, [offset], [descriptor.size])
    raise ValueError(f"{peer!r} does not offer the memory at {descriptor.ptr:#x}")


def _joined(blocks: Iterable[Blocks]) -> Blocks:
    return functools.reduce(operator.add, blocks)
