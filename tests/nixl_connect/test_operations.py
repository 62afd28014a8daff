"""Two workers, as upstream's documentation has them; the other one is peer.py, in a process of its own."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from dynamo.errors import ConnectionLostError, InvalidRequestError
from dynamo.nixl_connect import (
    Connector,
    Descriptor,
    OperationKind,
    OperationStatus,
    RdmaMetadata,
    ReadOperation,
    WriteOperation,
)
from dynamo.testing import within
from dynamo.testing.program import program

PEER = str(Path(__file__).with_name("peer.py"))
NUMBERS = np.arange(1000, dtype=np.int64)


@pytest.fixture
async def connector() -> AsyncIterator[Connector]:
    async with Connector("here") as made:
        yield made


async def test_a_peer_reads(connector: Connector) -> None:
    with connector.create_readable(Descriptor((NUMBERS, "cpu"))) as readable:
        assert (readable.operation_kind, readable.status) == (OperationKind.READ, OperationStatus.INITIALIZED)
        async with program([PEER, "read", readable.metadata().model_dump_json()]) as peer:
            await within(readable.wait_for_completion())
            assert await peer.line("read") == f"read {NUMBERS.sum()} DONE"
    assert readable.status is OperationStatus.COMPLETE


async def test_a_peer_writes(connector: Connector) -> None:
    zeros = np.zeros(1000, dtype=np.int64)
    with await connector.create_writable(Descriptor((zeros, "cpu"))) as writable:
        async with program([PEER, "write", writable.metadata().model_dump_json()]) as peer:
            await within(writable.wait_for_completion())
            assert (zeros == NUMBERS).all()
            assert await peer.line("written") == "written DONE"
    assert writable.status is OperationStatus.COMPLETE


async def test_reading_from_a_peer(connector: Connector) -> None:
    zeros = np.zeros(1000, dtype=np.int64)
    async with program([PEER, "readable"]) as peer:
        metadata = RdmaMetadata.model_validate_json(await peer.line("descriptors"))
        with await connector.begin_read(metadata, [Descriptor((zeros, "cpu"))]) as reading:
            statuses = [reading.status]
            with pytest.raises(RuntimeError):
                reading.results()
            await within(reading.wait_for_completion())
        assert [*statuses, reading.status] == [OperationStatus.IN_PROGRESS, OperationStatus.COMPLETE]
        assert [each.size for each in reading.results()] == [8000]
        assert (zeros == NUMBERS).all()
        assert await peer.line("was") == "was read DONE"


async def test_writing_to_a_peer(connector: Connector) -> None:
    parts = [Descriptor((part, "cpu")) for part in (NUMBERS[:500], NUMBERS[500:])]
    async with program([PEER, "writable"]) as peer:
        metadata = RdmaMetadata.model_validate_json(await peer.line("descriptors"))
        with await connector.begin_write(parts, metadata) as writing:
            await within(writing.wait_for_completion())
        assert writing.status is OperationStatus.COMPLETE
        assert await peer.line("was") == f"was written {NUMBERS.sum()} DONE"


async def test_a_peer_that_is_gone(connector: Connector) -> None:
    async with program([PEER, "readable"]) as peer:
        metadata = RdmaMetadata.model_validate_json(await peer.line("descriptors"))
    reading = await connector.begin_read(metadata, Descriptor(bytearray(8000)))
    with pytest.raises(ConnectionLostError):
        await within(reading.wait_for_completion())
    assert reading.status is OperationStatus.ERRORED


async def test_many_operations_with_one_peer(connector: Connector) -> None:
    async with Connector("there") as there:
        memories = [bytearray([number]) * 5000 for number in range(1, 21)]
        offers = [there.create_readable(Descriptor(memory)) for memory in memories]
        copies = [bytearray(5000) for _ in memories]
        begun = [
            await connector.begin_read(offer.metadata(), Descriptor(copy))
            for offer, copy in zip(offers, copies, strict=True)
        ]
        for waiting in [each.wait_for_completion() for each in begun] + [each.wait_for_completion() for each in offers]:
            await within(waiting)
        assert copies == memories


async def test_cancelled(connector: Connector) -> None:
    size_bytes = 256 << 20
    async with Connector("there") as there:
        offer = there.create_readable(Descriptor(bytearray(size_bytes)))
        with await connector.begin_read(offer.metadata(), Descriptor(bytearray(size_bytes))) as reading:
            pass
        await within(reading.wait_for_completion())
        assert reading.status is OperationStatus.CANCELLED
        statuses = [offer.status]
        waiting = asyncio.ensure_future(offer.wait_for_completion())
    await within(waiting)
    assert [*statuses, offer.status] == [OperationStatus.INITIALIZED, OperationStatus.CANCELLED]


async def test_memory_is_offered_as_long_as_its_descriptor_lives(connector: Connector) -> None:
    async with Connector("there") as there:
        memory, copy = bytearray(b"x" * 100), bytearray(100)
        offer = there.create_readable(Descriptor(memory))
        metadata = offer.metadata()
        await within((await connector.begin_read(metadata, Descriptor(copy))).wait_for_completion())
        assert copy == memory
        del offer
        late = await connector.begin_read(metadata, Descriptor(copy))
        with pytest.raises(InvalidRequestError):
            await within(late.wait_for_completion())


async def test_pairs_that_do_not_match(connector: Connector) -> None:
    async with Connector("there") as there:
        readable = there.create_readable(Descriptor(bytearray(10))).metadata()
        writable = there.create_writable(Descriptor(bytearray(10))).metadata()
        ten = Descriptor(bytearray(10))
        with pytest.raises(RuntimeError, match="READ"):
            await connector.begin_read(writable, ten)
        with pytest.raises(RuntimeError, match="WRITE"):
            await connector.begin_write(ten, readable)
        with pytest.raises(ValueError, match="READ"):
            ReadOperation(connector, writable, ten)
        with pytest.raises(ValueError, match="WRITE"):
            WriteOperation(connector, ten, readable)
        with pytest.raises(ValueError, match="size"):
            await connector.begin_read(readable, Descriptor(bytearray(11)))
        with pytest.raises(ValueError, match="number"):
            await connector.begin_read(readable, [ten, ten])
        with pytest.raises(TypeError):
            await connector.begin_read(ten, readable)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await connector.begin_read(readable, "text")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="at least one"):
            await connector.begin_read(readable, [])


async def test_a_connector_that_is_not_initialized() -> None:
    connector = Connector()
    operation = connector.create_readable(Descriptor(b"four"))
    assert operation.status is OperationStatus.UNINITIALIZED
    for use in (operation.metadata, lambda: connector.metadata):
        with pytest.raises(RuntimeError, match="initialize"):
            use()
    assert await operation is operation
    assert operation.metadata().descriptors[0].size == 4
    await connector.close()
