"""Two block managers: one has blocks, the other one's lookup brings them over."""

import itertools
from collections.abc import Sequence
from contextlib import AsyncExitStack

from dynamo.kvbm.effects import Answer, Fetch, Find, Grant
from dynamo.kvbm.manager import BlockManager, ManagerConfig, TierSpec
from dynamo.kvbm.peer_endpoint import PeerEndpoint, Pin
from dynamo.kvbm.peers import RuntimePeers, blocks_endpoint
from dynamo.kvbm.slot import SlotHeader
from dynamo.kvbm.storage.base import Copy, Stored
from dynamo.kvbm.storage.peer import PeerStorage
from dynamo.protocols.kvbm import StorageTier
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.distributed import DistributedRuntime, SharedParts
from dynamo.testing import eventually, within
from tests.kvbm.storage.small_pool import NAMESPACE, SLOT_BYTES, SLOTS, SmallPool, key, small_pool, stored

PEER = StorageTier.PEER
CONFIG = ManagerConfig(slot_bytes=SLOT_BYTES)
ENDPOINT = blocks_endpoint("test", NAMESPACE)
_ENGINE, _PEERS = 1, 2  # sessions


class ManagedBlocks:
    """As HostBlocks: what a manager has in host memory, pinned by lookups of a session of its own."""

    def __init__(self, manager: BlockManager) -> None:
        self._manager = manager
        self._ids = itertools.count()
        manager.attach(_PEERS)

    def pin(self, keys: Sequence[bytes]) -> Pin:
        number = next(self._ids)
        self._manager.look_up(_PEERS, number, keys, 0.0, 0.0)
        (answer,) = [effect for effect in self._manager.take_effects() if isinstance(effect, Answer)]
        names = {block.key: block.name for block in self._manager.snapshot(StorageTier.HOST)}
        copies = [Copy(slot, Stored(key, names[key])) for slot, key in zip(answer.slots, keys, strict=False)]
        return Pin(number, copies)

    def unpin(self, pin: Pin) -> None:
        self._manager.release(_PEERS, [pin.id], 0.0)


def with_blocks(pool: SmallPool, count: int) -> BlockManager:
    manager = BlockManager(CONFIG, [], slots=SLOTS)
    manager.attach(_ENGINE)
    number = 0
    while number < count:
        for effect in manager.take_effects():
            for slot in effect.slots if isinstance(effect, Grant) else ():
                if number < count:
                    pool.fill([Copy(slot, stored(number))])
                    manager.commit(_ENGINE, slot, stored(number), 0.0)
                    number += 1
    return manager


async def looked_up(manager: BlockManager, storage: PeerStorage, pool: SmallPool, keys: Sequence[bytes]) -> Answer:
    """The last answer, with everything done for it that the manager wants."""
    manager.look_up(_ENGINE, 0, keys, 5.0, 0.0)
    while True:
        effects = manager.take_effects()
        answers = [effect for effect in effects if isinstance(effect, Answer)]
        if answers and not answers[-1].coming:
            return answers[-1]
        for find in [effect for effect in effects if isinstance(effect, Find)]:
            manager.found(PEER, find.lookup, await within(storage.find(find.keys)), 0.1)
        copies = [effect.copy for effect in effects if isinstance(effect, Fetch)]
        for copy, outcome in zip(copies, await within(storage.read(copies)), strict=True):
            header = SlotHeader.read(pool.slot(copy.slot))  # which alone knows the block's name
            name = 0 if header is None else header.name
            manager.fetched(PEER, Copy(copy.slot, Stored(copy.block.key, name)), outcome, 0.01, 0.2)


async def test_a_lookup_brings_blocks_over() -> None:
    shared = SharedParts()
    config = RuntimeConfig(discovery_backend="mem")
    async with AsyncExitStack() as stack:
        runtimes = [DistributedRuntime(config=config, shared=shared) for _ in range(2)]
        for runtime in runtimes:
            stack.push_async_callback(runtime.close, graceful=False)
        far, near = [await stack.enter_async_context(small_pool(name)) for name in ("far", "near")]
        owner = with_blocks(far, 20)
        serving = PeerEndpoint(runtimes[0], ENDPOINT, far.agent, far.arena, far.layout, ManagedBlocks(owner))
        stack.push_async_callback(serving.close)
        await within(serving.start())
        peers = RuntimePeers(runtimes[1], ENDPOINT)
        storage = PeerStorage(near.agent, near.arena, near.layout, peers)
        stack.push_async_callback(storage.close)
        await within(storage.open())
        await eventually(lambda: len(peers.others()) == 1)

        reader = BlockManager(CONFIG, [TierSpec(tier=PEER, capacity=None)], slots=SLOTS)
        reader.tier_opened(PEER, [], 0.0)
        reader.attach(_ENGINE)
        keys = [key(i) for i in range(30)]
        answer = await looked_up(reader, storage, near, keys)
        assert answer.tiers == (0, 0, 0, 20)
        assert all(near.holds(Copy(slot, stored(i))) for i, slot in enumerate(answer.slots))
        assert set(reader.snapshot(StorageTier.HOST)) == {stored(i) for i in range(20)}
