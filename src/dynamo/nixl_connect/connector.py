"""Where all operations begin."""

import asyncio
import logging
import os
import sys
import uuid
import weakref
from collections.abc import Sequence
from typing import Self

from dynamo.config import from_environment
from dynamo.nixl_connect.active import ReadOperation, WriteOperation
from dynamo.nixl_connect.descriptor import Descriptor
from dynamo.nixl_connect.metadata import OperationKind, RdmaMetadata
from dynamo.nixl_connect.passive import PassiveOperation, ReadableOperation, WritableOperation
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.credentials import Credentials
from dynamo.transfer import Agent, Notification

logger = logging.getLogger(__name__)

TIMEOUT_S = 60.0


class Connector:
    """One per process is enough. close() it, or use it as an async context manager."""

    def __init__(
        self,
        worker_id: str | None = None,
        *,
        host: str = "127.0.0.1",
        backends: Sequence[str] | None = None,
        timeout_s: float = TIMEOUT_S,
        credentials: Credentials | None = None,
    ) -> None:
        """`worker_id` is unique among all connectors; None: a new one. `host` and `backends` are those of Agent().

        `timeout_s` is the deadline of read and write operations. `credentials`: None takes those that the DYN_*
        environment gives a runtime. Raises TypeError for a worker_id that is no text, ConfigError for wrong settings.
        """
        name = uuid.uuid4().hex if worker_id is None else worker_id
        if not isinstance(name, str) or not name:
            raise TypeError("a worker_id is a text")
        self.name = name
        self.timeout_s = timeout_s
        if credentials is None:
            credentials = RuntimeConfig(**from_environment(RuntimeConfig, os.environ)).credentials()
        self._agent = Agent(name, backends, host=host, credentials=credentials)
        self._initializing = asyncio.Lock()
        self._expected: weakref.WeakValueDictionary[str, PassiveOperation] = weakref.WeakValueDictionary()
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Connector(worker_id={self.name!r})"

    @property
    def is_initialized(self) -> bool:
        return self._reader is not None

    @property
    def is_cuda_available(self) -> bool:
        """As torch says, if it was imported."""
        torch = sys.modules.get("torch")
        return torch is not None and bool(torch.cuda.is_available())

    @property
    def agent(self) -> Agent:
        """What moves the bytes. Raises RuntimeError before initialize()."""
        if self._reader is None:
            raise RuntimeError("call Connector.initialize() first")
        return self._agent

    @property
    def metadata(self) -> bytes:
        """Its agent's, of all memory that is registered."""
        return self.agent.metadata()

    async def initialize(self) -> None:
        """Becomes reachable. Idempotent. Raises what Agent.start() raises."""
        async with self._initializing:
            if self._reader is None:
                await self._agent.start()
                self._reader = asyncio.create_task(self._read(), name=f"nixl-connect-{self.name}")

    async def close(self) -> None:
        """Operations under way fail, those that wait for a peer are given up. Idempotent."""
        for operation in tuple(self._expected.values()):
            operation.give_up()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        await self._agent.close()

    async def begin_read(
        self, remote_metadata: RdmaMetadata, local_descriptors: Descriptor | Sequence[Descriptor]
    ) -> ReadOperation:
        """Reads what a peer's ReadableOperation offers.

        Raises what ReadOperation() raises, RuntimeError when it is a WritableOperation.
        """
        self._check_kind(remote_metadata, OperationKind.READ)
        await self.initialize()
        return ReadOperation(self, remote_metadata, local_descriptors)

    async def begin_write(
        self, local_descriptors: Descriptor | Sequence[Descriptor], remote_metadata: RdmaMetadata
    ) -> WriteOperation:
        """Writes to what a peer's WritableOperation offers. Raises likewise."""
        self._check_kind(remote_metadata, OperationKind.WRITE)
        await self.initialize()
        return WriteOperation(self, local_descriptors, remote_metadata)

    def create_readable(self, local_descriptors: Descriptor | Sequence[Descriptor]) -> ReadableOperation:
        """Offers memory to a peer's ReadOperation. Before initialize(), it has to be awaited."""
        return ReadableOperation(self, local_descriptors)

    def create_writable(self, local_descriptors: Descriptor | Sequence[Descriptor]) -> WritableOperation:
        """Offers memory to a peer's WriteOperation. Before initialize(), it has to be awaited."""
        return WritableOperation(self, local_descriptors)

    def expect(self, key: str, operation: PassiveOperation) -> None:
        """For the operation: it is told when a peer notifies this connector of its key."""
        self._expected[key] = operation

    async def _read(self) -> None:
        async for notification in self._agent.notifications():
            self._on_done(notification)

    def _on_done(self, notification: Notification) -> None:
        operation = self._expected.pop(notification.payload.decode(errors="replace"), None)
        if operation is None:
            logger.debug("%r is done with an operation that nobody waits for", notification.sender)
        else:
            operation.completed()

    def _check_kind(self, metadata: RdmaMetadata, kind: OperationKind) -> None:
        if not isinstance(metadata, RdmaMetadata):
            raise TypeError("the remote metadata is a RdmaMetadata")
        if metadata.operation_kind != kind:
            raise RuntimeError(f"the remote operation is not one to {kind}")
