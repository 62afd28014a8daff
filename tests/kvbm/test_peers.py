"""Blocks of other hosts' block managers: how they are found and read, and what becomes of it when a peer fails."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dynamo.errors import InvalidRequestError, OverloadedError, UnsupportedFeatureError
from dynamo.kvbm import peer_endpoint
from dynamo.kvbm.peer_endpoint import PeerEndpoint
from dynamo.kvbm.peers import RuntimePeers, blocks_endpoint
from dynamo.kvbm.slot import HEADER_BYTES
from dynamo.kvbm.storage import peer as peer_module
from dynamo.kvbm.storage.base import Outcome
from dynamo.kvbm.storage.peer import PeerStorage
from dynamo.protocols.kvbm import KEY_BYTES
from dynamo.protocols.kvbm_peer import KEYS_MAX, FindBlocks
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.distributed import DistributedRuntime, SharedParts
from dynamo.testing import eventually, within
from dynamo.testing.program import Program, program
from tests.kvbm.held_blocks import HeldBlocks
from tests.kvbm.storage.small_pool import (
    NAMESPACE,
    SLOT_BYTES,
    SmallPool,
    copies,
    key,
    small_pool,
    stored,
    without_places,
)

READ, ABSENT, CORRUPT = Outcome.READ, Outcome.ABSENT, Outcome.CORRUPT
ENDPOINT = blocks_endpoint("test", NAMESPACE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Far:
    """A block manager that offers blocks."""

    pool: SmallPool
    runtime: DistributedRuntime
    blocks: HeldBlocks
    endpoint: PeerEndpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """One that reads them."""

    pool: SmallPool
    peers: RuntimePeers
    storage: PeerStorage

    async def knows(self, count: int) -> None:
        await eventually(lambda: len(self.peers.others()) == count)

    async def find(self, count: int) -> int:
        return await within(self.storage.find([key(i) for i in range(count)]))

    async def read(self, count: int) -> list[Outcome]:
        some = without_places(copies(range(count)))
        outcomes = await within(self.storage.read(some))
        self.pool.right(some, outcomes)
        self.pool.wipe()
        return outcomes


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
def shared() -> SharedParts:
    return SharedParts()


def runtime_of(stack: AsyncExitStack, config: RuntimeConfig, shared: SharedParts | None = None) -> DistributedRuntime:
    runtime = DistributedRuntime(config=config, shared=shared)
    stack.push_async_callback(runtime.close, graceful=False)
    return runtime


async def make_near(stack: AsyncExitStack, runtime: DistributedRuntime, namespace: bytes = NAMESPACE) -> Near:
    pool = await stack.enter_async_context(small_pool(f"near-{runtime.instance_id:x}", namespace))
    peers = RuntimePeers(runtime, blocks_endpoint("test", namespace))
    storage = PeerStorage(pool.agent, pool.arena, pool.layout, peers)
    stack.push_async_callback(storage.close)
    assert await within(storage.open()) == []
    return Near(pool=pool, peers=peers, storage=storage)


async def make_far(stack: AsyncExitStack, shared: SharedParts, count: int, namespace: bytes = NAMESPACE) -> Far:
    runtime = runtime_of(stack, RuntimeConfig(discovery_backend="mem"), shared)
    pool = await stack.enter_async_context(small_pool(f"far-{runtime.instance_id:x}", namespace))
    blocks = HeldBlocks(pool, range(count))
    endpoint = PeerEndpoint(runtime, blocks_endpoint("test", namespace), pool.agent, pool.arena, pool.layout, blocks)
    await within(endpoint.start())
    stack.push_async_callback(endpoint.close)
    return Far(pool=pool, runtime=runtime, blocks=blocks, endpoint=endpoint)


@pytest.fixture
async def near(stack: AsyncExitStack, shared: SharedParts) -> Near:
    return await make_near(stack, runtime_of(stack, RuntimeConfig(discovery_backend="mem"), shared))


async def test_blocks_come_from_a_peer(near: Near, stack: AsyncExitStack, shared: SharedParts) -> None:
    assert await near.find(5) == 0
    far = await make_far(stack, shared, 40)
    await near.knows(1)
    assert await near.find(50) == 40
    assert await near.read(50) == [READ] * 40 + [ABSENT] * 10
    await eventually(lambda: not far.blocks.pinned)
    assert far.blocks.pins == 2


async def test_the_peer_that_has_most(near: Near, stack: AsyncExitStack, shared: SharedParts) -> None:
    fars = [await make_far(stack, shared, count) for count in (3, 20, 10)]
    await near.knows(3)
    assert await near.find(30) == 20
    assert await near.read(30) == [READ] * 20 + [ABSENT] * 10
    assert [far.blocks.pins for far in fars] == [1, 2, 1]


async def test_several_peers(near: Near, stack: AsyncExitStack, shared: SharedParts) -> None:
    """What was found at different times is read from where it is."""
    one = await make_far(stack, shared, 4)
    two = await make_far(stack, shared, 0)
    two.blocks.held = HeldBlocks(two.pool, range(20, 24)).held
    await near.knows(2)
    assert await near.find(10) == 4
    assert await within(near.storage.find([key(i) for i in range(20, 30)])) == 4
    some = without_places(copies([20, 0, 21, 1, 99]))
    outcomes = await within(near.storage.read(some))
    assert outcomes == [READ, READ, READ, READ, ABSENT]
    near.pool.right(some, outcomes)
    await within(near.storage.forget([stored(0)]))
    assert await within(near.storage.read(some)) == [READ, ABSENT, READ, READ, ABSENT]
    await within(near.storage.clear())
    assert await within(near.storage.read(some)) == [ABSENT] * 5
    await eventually(lambda: not one.blocks.pinned and not two.blocks.pinned)


async def test_a_block_has_left_since(near: Near, stack: AsyncExitStack, shared: SharedParts) -> None:
    far = await make_far(stack, shared, 10)
    await near.knows(1)
    assert await near.find(10) == 10
    del far.blocks.held[key(6)]
    assert await near.read(10) == [READ] * 6 + [ABSENT] * 4
    far.blocks.held.clear()
    assert await near.read(10) == [ABSENT] * 10
    assert await near.find(10) == 0


async def test_blocks_that_change_meanwhile(near: Near, stack: AsyncExitStack, shared: SharedParts) -> None:
    """A peer whose pins do not hold can do harm to itself only."""
    far = await make_far(stack, shared, 10)
    await near.knows(1)
    assert await near.find(10) == 10
    offer = far.endpoint._offer

    def spoiled(pin: peer_endpoint.Pin) -> object:
        far.pool.slot(3)[HEADER_BYTES + 77] ^= 1
        far.pool.slot(5)[:] = far.pool.slot(4)
        return offer(pin)

    far.endpoint._offer = spoiled  # type: ignore[assignment, method-assign]
    assert await near.read(10) == [CORRUPT if i in (3, 5) else READ for i in range(10)]


async def test_peers_may_only_read(near: Near, stack: AsyncExitStack, shared: SharedParts) -> None:
    await make_far(stack, shared, 10)
    await near.knows(1)
    (peer,) = near.peers.others()
    async with near.peers.pinned(peer, [key(0)], 10) as pinned:
        near.pool.agent.add_peer(pinned.metadata)
        with pytest.raises(InvalidRequestError, match="read-only"):
            near.pool.agent.write(near.pool.arena.blocks([0], SLOT_BYTES), pinned.blocks)


async def test_pools_of_other_models(near: Near, stack: AsyncExitStack, shared: SharedParts) -> None:
    await make_far(stack, shared, 10, bytes(16))
    other = await make_near(stack, runtime_of(stack, RuntimeConfig(discovery_backend="mem"), shared), bytes(16))
    await other.knows(1)
    assert await other.find(10) == 10
    assert await near.find(10) == 0


async def test_who_goes_and_who_comes(near: Near, stack: AsyncExitStack, shared: SharedParts) -> None:
    first = await make_far(stack, shared, 10)
    await near.knows(1)
    assert await near.find(10) == 10
    assert await near.read(10) == [READ] * 10
    await within(first.endpoint.close())
    await near.knows(0)
    assert await near.read(10) == [ABSENT] * 10
    assert await near.find(10) == 0
    await make_far(stack, shared, 7)
    await near.knows(1)
    assert await near.find(10) == 7
    assert await near.read(10) == [READ] * 7 + [ABSENT] * 3


async def test_nothing_is_written_to_peers(near: Near) -> None:
    with pytest.raises(UnsupportedFeatureError):
        await near.storage.write(copies([1]))


async def test_pins_are_bounded(
    near: Near, stack: AsyncExitStack, shared: SharedParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_endpoint, "LEASES_MAX", 2)
    far = await make_far(stack, shared, 10)
    await near.knows(1)
    (peer,) = near.peers.others()
    async with near.peers.pinned(peer, [key(0)], 10), near.peers.pinned(peer, [key(1)], 10):
        assert len(far.blocks.pinned) == 2
        with pytest.raises(OverloadedError):
            await within(near.peers.find(peer, [key(0)], 10))
    await eventually(lambda: not far.blocks.pinned)
    assert await within(near.peers.find(peer, [key(0)] * (2 * KEYS_MAX), 10)) == KEYS_MAX


@pytest.mark.parametrize("how", ["lease", "deadline", "closed"])
async def test_pins_end(
    near: Near, stack: AsyncExitStack, shared: SharedParts, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "lease":
        monkeypatch.setattr(peer_endpoint, "LEASE_S", 0.05)
    far = await make_far(stack, shared, 10)
    await near.knows(1)
    (peer,) = near.peers.others()
    async with near.peers.pinned(peer, [key(0)], 0.1 if how == "deadline" else 10):
        if how == "closed":
            assert far.blocks.pinned
            await within(far.endpoint.close())
        await eventually(lambda: not far.blocks.pinned)


async def test_requests_that_are_too_long(near: Near, stack: AsyncExitStack, shared: SharedParts) -> None:
    await make_far(stack, shared, 10)
    await near.knows(1)
    (peer,) = near.peers.others()
    assert near.peers._opened is not None
    request = FindBlocks(bytes((KEYS_MAX + 1) * KEY_BYTES))
    replies = await within(near.peers._opened.direct(request, peer, False))
    with pytest.raises(InvalidRequestError):
        await within(anext(replies))


# Other processes


@asynccontextmanager
async def far_process(directory: Path, count: int) -> AsyncIterator[Program]:
    service = str(Path(__file__).with_name("peer_service.py"))
    async with program([service, str(directory), str(count)], {"PYTHONPATH": os.pathsep.join(["src", "."])}) as process:
        await process.line("serving as", 30)
        yield process


async def test_a_peer_that_dies(stack: AsyncExitStack, tmp_path: Path) -> None:
    near = await make_near(stack, runtime_of(stack, RuntimeConfig(file_kv=str(tmp_path))))
    async with far_process(tmp_path, 30) as process:
        await near.knows(1)
        assert await near.find(40) == 30
        assert await near.read(40) == [READ] * 30 + [ABSENT] * 10
        await process.line("unpin 2.")
        process.signal(signal.SIGKILL)
        await process.exit_code()
        assert await near.read(30) == [ABSENT] * 30
        assert await near.find(30) == 0
    async with far_process(tmp_path, 20):
        await eventually(lambda: len(near.peers.others()) == 1)
        assert await near.find(40) == 20
        assert await near.read(40) == [READ] * 20 + [ABSENT] * 20


async def test_a_peer_that_hangs(stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "FIND_TIMEOUT_S", 0.3)
    monkeypatch.setattr(peer_module, "READ_TIMEOUT_S", 0.3)
    monkeypatch.setattr(peer_module, "AVOID_S", 0.0)
    near = await make_near(stack, runtime_of(stack, RuntimeConfig(file_kv=str(tmp_path))))
    async with far_process(tmp_path, 30) as process:
        await near.knows(1)
        assert await near.find(30) == 30
        process.signal(signal.SIGSTOP)
        assert await near.find(30) == 0
        assert await near.read(30) == [ABSENT] * 30
        process.signal(signal.SIGCONT)
        await eventually(lambda: len(near.peers.others()) == 1, 20)
        assert await near.find(30) == 30
        assert await near.read(30) == [READ] * 30


async def test_a_reader_that_dies(stack: AsyncExitStack, tmp_path: Path) -> None:
    """Its pins end with it; here it is this process's runtime that goes without a word."""
    near = await make_near(stack, runtime := runtime_of(stack, RuntimeConfig(file_kv=str(tmp_path))))
    async with far_process(tmp_path, 30) as process:
        await near.knows(1)
        (peer,) = near.peers.others()
        async with near.peers.pinned(peer, [key(0)], 30):
            await process.line("pin 1.")
            await within(runtime.close(graceful=False))
            await process.line("unpin 1.")


async def test_one_that_failed_is_left_alone(near: Near, stack: AsyncExitStack, shared: SharedParts) -> None:
    far = await make_far(stack, shared, 10)
    await near.knows(1)
    assert await near.find(10) == 10

    def fail(_: object) -> peer_endpoint.Pin:
        raise OverloadedError("no more")

    far.blocks.pin, pin = fail, far.blocks.pin  # type: ignore[method-assign, assignment]
    assert await near.read(10) == [ABSENT] * 10
    far.blocks.pin = pin  # type: ignore[method-assign]
    pins = far.blocks.pins
    assert await near.find(10) == 0
    assert far.blocks.pins == pins
