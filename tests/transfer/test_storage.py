"""What transfers must do with files and objects, wherever they are."""

import asyncio
import importlib.util
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from dynamo.errors import ConnectionLostError, DeadlineExceededError, InvalidRequestError, RequestCancelledError
from dynamo.testing import within
from dynamo.transfer import Agent, Blocks, ObjectStore, Region, StoredRegion, TransferState, open_store
from tests.transfer.s3_server import INSTALLED, s3_server

KIB = 1 << 10
UNITS = 24
UNIT_BYTES = 96 * KIB  # of the objects; what is written at a time
SIZE_BYTES = UNITS * UNIT_BYTES
PATTERN = bytes(i * 31 % 251 for i in range(251))
BEFORE = (PATTERN * (SIZE_BYTES // 251 + 1))[:SIZE_BYTES]

needs_obstore = pytest.mark.skipif(
    importlib.util.find_spec("obstore") is None, reason="NOT TESTED: object stores (pip install 'dynamo-py[object]')"
)
needs_s3 = pytest.mark.skipif(not INSTALLED, reason="NOT TESTED: S3 (pip install localbucket)")


@dataclass(slots=True, kw_only=True, repr=False)
class Place:
    agent: Agent
    memory: bytearray
    region: Region  # of `memory`
    stored: StoredRegion  # holds BEFORE, is as large as the memory, and can be written

    async def content(self) -> bytes:
        """What is stored, read in one piece by another transfer."""
        memory = bytearray(SIZE_BYTES)
        region = self.agent.register(memory)
        await within(self.agent.read(region.all(), self.stored.all()))
        self.agent.deregister(region)
        return bytes(memory)

    def here(self, offsets: list[int], lengths: list[int]) -> Blocks:
        return Blocks.of("near", self.region.id, offsets, lengths)

    def there(self, offsets: list[int], lengths: list[int]) -> Blocks:
        return Blocks.of("near", self.stored.id, offsets, lengths)


@pytest.fixture(
    params=[
        "file",
        "file through the cache",
        pytest.param("memory", marks=needs_obstore),
        pytest.param("directory", marks=needs_obstore),
        pytest.param("s3", marks=[needs_obstore, needs_s3]),
    ]
)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        agent = await stack.enter_async_context(Agent("near"))
        if request.param.startswith("file"):
            direct = request.param == "file"
            stored = agent.register_file(tmp_path / "blocks", SIZE_BYTES, writable=True, direct=direct)
        else:
            store = await opened(request.param, tmp_path, stack)
            keys = [f"block/{i:x}" for i in range(UNITS)]
            stored = agent.register_objects(store, keys, UNIT_BYTES, writable=True)
        memory = bytearray(BEFORE)
        region = agent.register(memory)
        await within(agent.write(region.all(), stored.all()))
        memory[:] = bytes(SIZE_BYTES)
        yield Place(agent=agent, memory=memory, region=region, stored=stored)


async def opened(kind: str, directory: Path, stack: AsyncExitStack) -> ObjectStore:
    if kind == "memory":
        return open_store("memory:///")
    if kind == "directory":
        return open_store(directory.as_uri())
    return (await stack.enter_async_context(s3_server(directory))).store()


@pytest.mark.parametrize("seed", range(4))
async def test_reads_of_any_blocks(place: Place, seed: int) -> None:
    rng = random.Random(seed)
    count = rng.choice((1, 3, 300, 2000))
    slot = SIZE_BYTES // count
    lengths = [rng.choice((0, 1, 7, 64, slot // 2, slot)) for _ in range(count)]
    here = [slot * i for i in rng.sample(range(count), count)]
    there = [rng.randrange(SIZE_BYTES - length + 1) for length in lengths]  # they may overlap
    transfer = place.agent.read(place.here(here, lengths), place.there(there, lengths))
    await within(transfer)
    assert (transfer.state, transfer.done_bytes, transfer.size_bytes) == (
        TransferState.DONE,
        sum(lengths),
        sum(lengths),
    )
    expected = bytearray(SIZE_BYTES)
    for to, start, length in zip(here, there, lengths, strict=True):
        expected[to : to + length] = BEFORE[start : start + length]
    assert place.memory == expected


@pytest.mark.parametrize("seed", range(3))
async def test_writes_of_whole_units(place: Place, seed: int) -> None:
    """In any order, each from any number of pieces of memory."""
    rng = random.Random(seed)
    piece = UNIT_BYTES // rng.choice((1, 3, 64))
    there = [
        unit * UNIT_BYTES + offset
        for unit in rng.sample(range(UNITS), UNITS // 2)
        for offset in range(0, UNIT_BYTES, piece)
    ]
    rng.shuffle(there)
    here = [piece * i for i in rng.sample(range(SIZE_BYTES // piece), len(there))]
    place.memory[:] = rng.randbytes(SIZE_BYTES)
    sent = bytes(place.memory)
    transfer = place.agent.write(place.region.blocks(here, piece), place.stored.blocks(there, piece))
    await within(transfer)
    assert transfer.done_bytes == piece * len(there)
    assert place.memory == sent
    expected = bytearray(BEFORE)
    for start, to in zip(here, there, strict=True):
        expected[to : to + piece] = sent[start : start + piece]
    assert await place.content() == expected


async def test_nothing_to_move(place: Place) -> None:
    for lengths in ([], [0], [0, 0]):
        offsets = [0] * len(lengths)
        await within(place.agent.read(place.here(offsets, lengths), place.there(offsets, lengths)))
        await within(place.agent.write(place.here(offsets, lengths), place.there(offsets, lengths)))
    assert not any(place.memory)


async def test_memory_of_several_regions(place: Place) -> None:
    second = bytearray(1000)
    region = place.agent.register(second)
    local = region.blocks([500], 100) + place.here([7], [50])
    await within(place.agent.read(local, place.there([0, 1000], [100, 50])))
    assert second[500:600] == BEFORE[:100]
    assert place.memory[7:57] == BEFORE[1000:1050]


async def test_many_at_the_same_time(place: Place) -> None:
    offsets = range(0, SIZE_BYTES, UNIT_BYTES)
    for transfer in [
        place.agent.read(place.region.blocks([at], UNIT_BYTES), place.stored.blocks([at], UNIT_BYTES)) for at in offsets
    ]:
        await within(transfer)
    assert place.memory == BEFORE


async def test_checksums_that_agree(place: Place) -> None:
    units = [5 * UNIT_BYTES, 2 * UNIT_BYTES, 3 * UNIT_BYTES]
    local = place.region.blocks([0, UNIT_BYTES, 2 * UNIT_BYTES], UNIT_BYTES)
    await within(place.agent.read(local, place.stored.blocks(units, UNIT_BYTES), checksum=True))
    await within(place.agent.write(local, place.stored.blocks(units, UNIT_BYTES), checksum=True))


async def test_cancelled(place: Place) -> None:
    transfer = place.agent.read(place.region.all(), place.stored.all())
    states = [transfer.state]
    transfer.cancel()
    with pytest.raises(RequestCancelledError):
        await within(transfer)
    assert [*states, transfer.state] == [TransferState.RUNNING, TransferState.CANCELLED]
    await within(place.agent.read(place.region.all(), place.stored.all()))
    assert place.memory == BEFORE


async def test_awaiting_that_is_cancelled_ends_the_transfer(place: Place) -> None:
    transfer = place.agent.read(place.region.all(), place.stored.all())
    waiting = asyncio.ensure_future(transfer)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(waiting)


async def test_deadline(place: Place) -> None:
    transfer = place.agent.write(place.region.all(), place.stored.all(), timeout_s=0)
    with pytest.raises(DeadlineExceededError):
        await within(transfer)
    assert await place.content() == BEFORE


async def test_what_is_registered_no_more(place: Place) -> None:
    under_way = place.agent.read(place.region.all(), place.stored.all())
    place.agent.deregister(place.stored)
    place.agent.deregister(place.stored)
    with pytest.raises((InvalidRequestError, ConnectionLostError)):
        await within(under_way)
    for begin in (place.agent.read, place.agent.write):
        with pytest.raises(InvalidRequestError, match="registered"):
            begin(place.region.all(), place.stored.all())


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (([0], [10]), ([0], [11])),
        (([0, 100], [10, 10]), ([0], [20])),
        (([SIZE_BYTES], [1]), ([0], [1])),
        (([0], [1]), ([SIZE_BYTES], [1])),
        (([0], [1]), ([2**64 - 1], [1])),
    ],
)
async def test_blocks_that_make_no_sense(
    place: Place, here: tuple[list[int], list[int]], there: tuple[list[int], list[int]]
) -> None:
    with pytest.raises(InvalidRequestError):
        place.agent.read(place.here(*here), place.there(*there))
    with pytest.raises(InvalidRequestError):
        place.stored.blocks([SIZE_BYTES - 1], 2)
    assert not any(place.memory)


async def test_ends_that_are_none(place: Place) -> None:
    two = place.stored.blocks([0], 1) + Blocks.of("near", place.region.id, [0], [1])
    for local, remote in (
        (place.stored.all(), place.stored.all()),
        (place.region.all(), Blocks.of("near", 1 << 40, [0], [SIZE_BYTES])),
        (place.region.all(), Blocks.of("far", place.stored.id, [0], [SIZE_BYTES])),
        (place.region.blocks([0, 1], 1), two),
    ):
        with pytest.raises(InvalidRequestError):
            place.agent.read(local, remote)


async def test_read_only_memory(place: Place) -> None:
    region = place.agent.register(bytes(UNIT_BYTES))
    one = place.stored.blocks([0], UNIT_BYTES)
    with pytest.raises(InvalidRequestError, match="read-only"):
        place.agent.read(region.all(), one)
    await within(place.agent.write(region.all(), one))
    assert (await place.content())[:UNIT_BYTES] == bytes(UNIT_BYTES)


async def test_agent_that_closes(place: Place) -> None:
    transfer = place.agent.read(place.region.all(), place.stored.all())
    await within(place.agent.close())
    with pytest.raises((ConnectionLostError, InvalidRequestError)):
        await within(transfer)


async def test_peers_are_not_told(place: Place) -> None:
    async with Agent("far") as far:
        far.add_peer(place.agent.metadata())
        ours = far.register(bytearray(SIZE_BYTES))
        with pytest.raises(InvalidRequestError):
            far.read(ours.all(), place.stored.all())
