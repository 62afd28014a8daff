"""What transfers must do, by every backend, between two processes."""

import asyncio
import base64
import itertools
import random
import signal
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from xxhash import xxh3_128_digest

from dynamo.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    DynamoError,
    InvalidRequestError,
    RequestCancelledError,
)
from dynamo.testing import Program, within
from dynamo.testing.program import program
from dynamo.transfer import Agent, Blocks, Region, TransferState, nixl_library

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the peers' loop

PEER = Path(__file__).with_name("peer.py")
MIB = 1 << 20
LARGE_BYTES = 512 * MIB  # so much that a transfer does not end before a test has done something to it
PATTERN = bytes(i * 31 % 251 for i in range(251))
_numbers = itertools.count()


def far_bytes(offset: int, size_bytes: int) -> bytes:
    """What the peer has there at first."""
    begin = offset % 251
    return (PATTERN * (size_bytes // 251 + 2))[begin : begin + size_bytes]


@dataclass(slots=True, kw_only=True, repr=False)
class Pair:
    near: Agent
    process: Program
    memory: bytearray
    region: Region  # of `memory`
    size_bytes: int  # of the peer's only region, number 0

    def far(self, offsets: list[int], lengths: list[int]) -> Blocks:
        return Blocks.of("far", 0, offsets, lengths)

    def here(self, offsets: list[int], lengths: list[int]) -> Blocks:
        return Blocks.of("near", self.region.id, offsets, lengths)


@pytest.fixture(scope="module", params=["cma", "shm", "nixl", "tcp"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "nixl" and not nixl_library.is_installed():
        pytest.skip(f"NIXL is not installed: {nixl_library.INSTALL}")
    return name


@dataclass(slots=True, kw_only=True)
class Peer:
    """The other process. It may serve one test after the other, each with an agent of its own."""

    backend: str
    process: Program
    size_bytes: int
    metadata: bytes

    @asynccontextmanager
    async def paired(self) -> AsyncIterator[Pair]:
        async with Agent("near", [self.backend]) as near:
            assert near.add_peer(self.metadata) == "far"
            memory = bytearray(self.size_bytes)
            region = near.register(memory)
            yield Pair(near=near, process=self.process, memory=memory, region=region, size_bytes=self.size_bytes)


@asynccontextmanager
async def started(backend: str, size_bytes: int) -> AsyncIterator[Peer]:
    async with program([str(PEER), str(size_bytes), backend]) as process:
        metadata = base64.b64decode(await process.line("", 30))
        yield Peer(backend=backend, process=process, size_bytes=size_bytes, metadata=metadata)


@asynccontextmanager
async def paired(backend: str, size_bytes: int) -> AsyncIterator[Pair]:
    """With a peer of the test's own."""
    async with started(backend, size_bytes) as peer, peer.paired() as pair:
        yield pair


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def peer(backend: str) -> AsyncIterator[Peer]:
    async with started(backend, 16 * MIB) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def large_peer(backend: str) -> AsyncIterator[Peer]:
    async with started(backend, LARGE_BYTES) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def pair(peer: Peer) -> AsyncIterator[Pair]:
    async with peer.paired() as made:
        await restored(made)
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def large(large_peer: Peer) -> AsyncIterator[Pair]:
    async with large_peer.paired() as made:
        await restored(made)
        yield made


async def restored(pair: Pair) -> None:
    """Has the peer undo what was written to its memory."""
    request = f"restore {next(_numbers)}."
    await within(pair.near.notify("far", request.encode()))
    await pair.process.line(request)


def registered(agent: Agent, memory: bytes, backend: str) -> Region:
    """Of a kind that the backend reaches."""
    if backend != "shm":
        return agent.register(bytearray(memory))
    region = agent.allocate(len(memory))
    region.view()[:] = memory
    return region


def random_blocks(rng: random.Random, size_bytes: int, count: int) -> tuple[list[int], list[int], list[int]]:
    """Offsets that do not overlap, others of the same number, and lengths for both."""
    slot = size_bytes // count
    lengths = [rng.choice((0, 1, 7, 64, slot // 2, slot)) for _ in range(count)]
    one, other = rng.sample(range(count), count), rng.sample(range(count), count)
    return [slot * i for i in one], [slot * i for i in other], lengths


@pytest.mark.parametrize("seed", range(4))
async def test_reads_and_writes_of_any_blocks(pair: Pair, seed: int) -> None:
    rng = random.Random(seed)
    here, there, lengths = random_blocks(rng, pair.size_bytes, rng.choice((1, 3, 500, 3000)))
    reading = pair.near.read(pair.here(here, lengths), pair.far(there, lengths))
    await within(reading)
    assert (reading.state, reading.done_bytes, reading.size_bytes) == (TransferState.DONE, sum(lengths), sum(lengths))
    expected = bytearray(pair.size_bytes)
    for to, start, length in zip(here, there, lengths, strict=True):
        expected[to : to + length] = far_bytes(start, length)
    assert pair.memory == expected

    pair.memory[:] = rng.randbytes(pair.size_bytes)
    sent = bytes(pair.memory)
    await within(pair.near.write(pair.here(here, lengths), pair.far(there, lengths)))
    assert pair.memory == sent
    await within(pair.near.read(pair.region.all(), pair.far([0], [pair.size_bytes])))
    expected[:] = far_bytes(0, pair.size_bytes)
    for start, to, length in zip(here, there, lengths, strict=True):
        expected[to : to + length] = sent[start : start + length]
    assert pair.memory == expected


async def test_nothing_to_move(pair: Pair) -> None:
    for lengths in ([], [0], [0, 0]):
        offsets = [0] * len(lengths)
        await within(pair.near.read(pair.here(offsets, lengths), pair.far(offsets, lengths)))
    assert not any(pair.memory)


async def test_blocks_of_several_regions_in_one_list(pair: Pair) -> None:
    second = bytearray(1000)
    region = pair.near.register(second)
    local = region.blocks([500], 100) + pair.here([7], [50]) + region.blocks([0, 100], 10)
    await within(pair.near.read(local, pair.far([0, 1000, 2000, 3000], [100, 50, 10, 10])))
    assert second[500:600] == far_bytes(0, 100)
    assert pair.memory[7:57] == far_bytes(1000, 50)
    assert second[0:10] + second[100:110] == far_bytes(2000, 10) + far_bytes(3000, 10)


async def test_many_at_the_same_time(pair: Pair) -> None:
    part = pair.size_bytes // 32
    reads = [pair.near.read(pair.here([i * part], [part]), pair.far([i * part], [part])) for i in range(32)]
    for transfer in reads:
        await within(transfer)
    assert pair.memory == far_bytes(0, pair.size_bytes)


async def test_checksums_that_agree(pair: Pair) -> None:
    blocks = [100, 70_000, 5_000_000], [10, 50_000, 9_000_000]
    await within(pair.near.read(pair.here(*blocks), pair.far(*blocks), checksum=True))
    await within(pair.near.write(pair.here(*blocks), pair.far(*blocks), checksum=True))


async def test_cancelled(large: Pair) -> None:
    transfer = large.near.read(large.region.all(), large.far([0], [large.size_bytes]))
    states = [transfer.state]
    transfer.cancel()
    with pytest.raises(RequestCancelledError):
        await within(transfer)
    assert [*states, transfer.state] == [TransferState.RUNNING, TransferState.CANCELLED]
    assert transfer.done_bytes < large.size_bytes
    rest = memoryview(large.memory)[100:]
    kept = xxh3_128_digest(rest)
    await within(large.near.read(large.here([0], [100]), large.far([0], [100])))
    assert large.memory[:100] == far_bytes(0, 100)
    assert xxh3_128_digest(rest) == kept  # and nothing else has come since


async def test_awaiting_that_is_cancelled_ends_the_transfer(large: Pair) -> None:
    transfer = large.near.write(large.region.all(), large.far([0], [large.size_bytes]))
    waiting = asyncio.ensure_future(transfer)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(waiting)
    assert transfer.state is TransferState.CANCELLED


async def test_deadline(large: Pair) -> None:
    transfer = large.near.read(large.region.all(), large.far([0], [large.size_bytes]), timeout_s=0.005)
    with pytest.raises(DeadlineExceededError):
        await within(transfer)
    assert transfer.state is TransferState.FAILED


@pytest.mark.alone
@pytest.mark.parametrize("moment", ["before", "meanwhile"])
async def test_peer_killed(backend: str, moment: str) -> None:
    async with paired(backend, LARGE_BYTES) as large:
        await within(large.near.read(large.here([0], [100]), large.far([0], [100])))
        if moment == "before":
            large.process.signal(signal.SIGKILL)
            await large.process.exit_code()
            started_s = time.monotonic()
            transfer = large.near.read(large.region.all(), large.far([0], [large.size_bytes]))
        else:
            transfer = large.near.read(large.region.all(), large.far([0], [large.size_bytes]))
            large.process.signal(signal.SIGKILL)
            started_s = time.monotonic()
        with pytest.raises(ConnectionLostError):
            await within(transfer)
        assert time.monotonic() - started_s < 1
        with pytest.raises(ConnectionLostError):
            await within(large.near.read(large.here([0], [100]), large.far([0], [100])))


async def test_region_that_is_not_registered_any_more(backend: str) -> None:
    async with paired(backend, MIB) as pair:
        await within(pair.near.read(pair.here([0], [100]), pair.far([0], [100])))
        await within(pair.near.notify("far", b"deregister"))
        await pair.process.line("deregister")
        for begin in (pair.near.read, pair.near.write):
            with pytest.raises(InvalidRequestError):
                await within(begin(pair.here([0], [100]), pair.far([0], [100])))


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (([0], [10]), ([0], [11])),
        (([0, 100], [10, 10]), ([0], [20])),
        (([16 * MIB], [1]), ([0], [1])),
        (([0], [1]), ([2 * 16 * MIB], [1])),
        (([2**64 - 1], [1]), ([0], [1])),
        (([0], [2**64 - 1]), ([0], [2**64 - 1])),
    ],
)
async def test_blocks_that_make_no_sense(
    pair: Pair, here: tuple[list[int], list[int]], there: tuple[list[int], list[int]]
) -> None:
    with pytest.raises(InvalidRequestError):
        pair.near.read(pair.here(*here), pair.far(*there))
    assert not any(pair.memory)


async def test_regions_and_peers_that_are_not_known(pair: Pair) -> None:
    for local, remote in (
        (Blocks.of("near", 77, [0], [1]), pair.far([0], [1])),
        (pair.here([0], [1]), Blocks.of("far", 77, [0], [1])),
        (pair.here([0], [1]), Blocks.of("nobody", 0, [0], [1])),
        (Blocks.of("far", 0, [0], [1]), pair.far([0], [1])),
    ):
        with pytest.raises(InvalidRequestError):
            pair.near.read(local, remote)


async def test_read_only_memory(pair: Pair) -> None:
    region = pair.near.register(b"read-only")
    await within(pair.near.write(region.all(), pair.far([0], [9])))
    with pytest.raises(InvalidRequestError, match="read-only"):
        pair.near.read(region.all(), pair.far([0], [9]))


@pytest.mark.alone
async def test_a_peer_that_hangs_holds_up_nobody_else(backend: str) -> None:
    """Nor do those that wait for it wait for longer than they may."""
    if backend != "tcp":
        pytest.skip("what is copied by this side alone does not wait for the other")
    async with paired(backend, 64 * MIB) as pair:
        await within(pair.near.read(pair.here([0], [100]), pair.far([0], [100])))
        pair.process.signal(signal.SIGSTOP)
        blocks = [0], [pair.size_bytes]
        stuck = [pair.near.read(pair.here(*blocks), pair.far(*blocks), timeout_s=60) for _ in range(20)]
        late = [pair.near.read(pair.here(*blocks), pair.far(*blocks), timeout_s=0.2) for _ in range(5)]
        async with Agent("healthy", [backend]) as healthy:
            theirs = healthy.register(bytearray(100))
            pair.near.add_peer(healthy.metadata())
            started_s = time.monotonic()
            await within(pair.near.read(pair.here([0], [100]), theirs.all(), timeout_s=5))
            for transfer in late:
                with pytest.raises(DeadlineExceededError):
                    await within(transfer)
            for transfer in stuck:
                transfer.cancel()
                with pytest.raises(RequestCancelledError):
                    await within(transfer)
            assert time.monotonic() - started_s < 5


async def test_peer_that_closes(backend: str) -> None:
    async with Agent("near", [backend]) as near:
        far = Agent("far", [backend])
        await far.start()
        theirs = registered(far, bytes(1000), backend)
        ours = near.register(bytearray(1000))
        near.add_peer(far.metadata())
        await within(near.read(ours.all(), theirs.all()))
        await within(far.close())
        with pytest.raises(DynamoError):
            await within(near.read(ours.all(), theirs.all()))


async def test_peer_that_comes_again(backend: str) -> None:
    """Under the same name, from another process as it were, with other memory."""
    async with Agent("near", [backend]) as near:
        ours = near.register(array("I", [0]))
        for number in range(3):
            async with Agent("far", [backend]) as far:
                theirs = registered(far, array("I", [number]).tobytes(), backend)
                near.add_peer(far.metadata())
                await within(near.read(ours.all(), theirs.all()))
                assert ours.view().cast("I")[0] == number
