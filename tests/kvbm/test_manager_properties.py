"""The manager against random engines, tiers that fail in every way, and a memory that knows who wrote what."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dynamo.kvbm.block import BlockState
from dynamo.kvbm.manager import ManagerConfig
from dynamo.protocols.kvbm import StorageTier

from .memory_world import TIERS, MemoryWorld, key_of

NAMES = st.integers(0, 11)
FIRST = st.integers(0, 5)
PICK = st.integers(0, 1 << 16)


class ManagerMachine(RuleBasedStateMachine):
    """Two engines, a few slots, a smaller disk, an object store and peers."""

    @initialize(
        policy=st.sampled_from(["lru", "tinylfu"]),
        disk_filter=st.sampled_from(["none", "frequency"]),
        offload=st.sampled_from(["write-through", "on-evict"]),
        slots=st.integers(1, 8),
        disk=st.integers(0, 6),
    )
    def build(self, policy: str, disk_filter: str, offload: str, slots: int, disk: int) -> None:
        config = ManagerConfig(
            slot_bytes=4096,
            policy=policy,
            disk_filter=disk_filter,
            disk_offload=offload,
            grant_slots=2,
            fetches_max=3,
            writes_max=2,
            queue_max=4,
        )
        self.world = MemoryWorld(config, slots, disk, StorageTier.OBJECT, StorageTier.PEER)
        self.next_lookup = 0
        for session in (1, 2):
            self.world.attach(session)
        self.world.disk = {place: key_of(place) for place in range(disk)}
        self.world.store[StorageTier.OBJECT] = {key_of(name) for name in range(4, 9)}
        self.world.store[StorageTier.PEER] = {key_of(name) for name in range(6, 12)}
        for tier in TIERS:
            self.world.open(tier)

    @rule(session=st.integers(1, 2), first=FIRST, count=st.integers(1, 8))
    def fill(self, session: int, first: int, count: int) -> None:
        for name in range(first, first + count):
            if self.world.engines[session].granted:
                self.world.fill(session, name)

    @rule(session=st.integers(1, 2), pick=PICK)
    def discard(self, session: int, pick: int) -> None:
        granted = self.world.engines[session].granted
        if granted:
            slot = sorted(granted)[pick % len(granted)]
            granted.remove(slot)
            self.world.manager.discard(session, [slot])
            self.world.settle()

    @rule(
        session=st.integers(1, 2),
        first=FIRST,
        count=st.integers(1, 6),
        names=st.lists(NAMES, max_size=3),
        wait_s=st.sampled_from([0.5, 0.0, 0.2]),
    )
    def look_up(self, session: int, first: int, count: int, names: list[int], wait_s: float) -> None:
        self.next_lookup += 1
        answer = self.world.look_up(session, self.next_lookup, *range(first, first + count), *names, wait_s=wait_s)
        assert answer is not None

    @rule(session=st.integers(1, 2), pick=PICK)
    def release(self, session: int, pick: int) -> None:
        asked = sorted(self.world.engines[session].asked)
        if asked:
            self.world.release(session, asked[pick % len(asked)])

    @rule(session=st.integers(1, 2))
    def restart_engine(self, session: int) -> None:
        self.world.detach(session)
        self.world.attach(session)

    @precondition(lambda self: self.world.writes)
    @rule(pick=PICK, good=st.booleans())
    def end_write(self, pick: int, good: bool) -> None:
        self.world.end_write(self.world.writes[pick % len(self.world.writes)], good=good)

    @precondition(lambda self: self.world.fetches)
    @rule(pick=PICK, fate=st.sampled_from(["read", "read", "failed", "corrupt"]))
    def end_fetch(self, pick: int, fate: str) -> None:
        fetch = self.world.fetches[pick % len(self.world.fetches)]
        self.world.end_fetch(fetch, failed=fate == "failed", corrupt=fate == "corrupt")

    @precondition(lambda self: self.world.finds)
    @rule(pick=PICK)
    def end_find(self, pick: int) -> None:
        self.world.end_find(self.world.finds[pick % len(self.world.finds)])

    @rule(seconds=st.sampled_from([0.1, 0.3, 10.0]))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)
        due_s = self.world.manager.next_tick_s()
        for engine in self.world.engines.values():
            for answer in engine.answers.values():
                assert not answer.coming or (due_s is not None and due_s <= self.world.now_s + 1.0)

    @rule(tier=st.sampled_from(TIERS))
    def open_tier(self, tier: StorageTier) -> None:
        self.world.open(tier)

    @rule(tier=st.sampled_from([StorageTier.OBJECT, StorageTier.PEER]), names=st.sets(NAMES))
    def others_store(self, tier: StorageTier, names: set[int]) -> None:
        self.world.store[tier] = {key_of(name) for name in names}

    @rule(tier=st.sampled_from(list(StorageTier)), clear=st.booleans())
    def lose_or_clear(self, tier: StorageTier, clear: bool) -> None:
        if clear:
            self.world.manager.clear([tier], self.world.now_s)
            if tier is StorageTier.DISK:
                self.world.disk.clear()
            assert not list(self.world.manager.snapshot(tier))
        elif tier is not StorageTier.HOST:
            self.world.manager.tier_lost(tier, self.world.now_s)
        self.world.settle()

    @rule()
    def run(self) -> None:
        self.world.run()

    @rule(count=st.integers(1, 2))
    def grow(self, count: int) -> None:
        if len(self.world.slots) < 16:
            self.world.slots += [b""] * count
            self.world.manager.add_slots(count)
            self.world.settle()

    @invariant()
    def every_slot_is_accounted_for(self) -> None:
        """In one state, for one reason, and free if there is none."""
        world, pool = self.world, self.world.manager._pool
        granted = [slot for engine in world.engines.values() for slot in engine.granted]
        arriving = [fetch.copy.slot for fetch in world.fetches]
        filling = [block.index for block in pool.blocks if block.state is BlockState.PARTIAL]
        assert sorted(granted + arriving) == filling
        registered = {block.index for block in pool.registered.values()}
        assert registered == {block.index for block in pool.blocks if block.state is BlockState.REGISTERED}
        writing = Counter(write.copy.slot for write in world.writes)
        evictable = 0
        for block in pool.blocks:
            assert block.writes == writing[block.index]
            if block.state is BlockState.COMPLETE:
                assert block.pins or block.writes
            if block.state is BlockState.RESET:
                assert (block.pins, block.writes, block.owner) == (0, 0, None)
            evictable += block.state is BlockState.REGISTERED and not block.pins and not block.leaving
        free = sum(block.state is BlockState.RESET for block in pool.blocks)
        assert world.manager.held_slots == len(pool.blocks) - free - evictable
        pool.rank()
        assert len(pool._policy) == evictable
        assert pool.free == free
        assert pool.leaving == sum(block.leaving for block in pool.blocks)

    @invariant()
    def every_place_is_accounted_for(self) -> None:
        """Of the disk: free, or of one block, or busy."""
        books = self.world.manager._tiers[StorageTier.DISK].books
        used = {block.place for block in (*books, *books._writing.values(), *books._reading.values())}
        assert used.isdisjoint(books._free)
        assert len(set(books._free)) == len(books._free)
        assert used | set(books._free) == set(range(books._fresh_place))
        assert books._fresh_place <= (books.capacity or 0)
        reading = sum(block is books._entries.get(block.key) for block in books._reading.values())
        assert len(books._policy) == len(books) - reading

    @invariant()
    def work_is_bounded(self) -> None:
        assert len(self.world.fetches) <= 3
        assert len(self.world.writes) <= 2

    def teardown(self) -> None:
        """When all is quiet and nobody is there any more, no slot is pinned or lost."""
        if not hasattr(self, "world"):
            return
        self.world.run()
        for session in list(self.world.engines):
            self.world.detach(session)
        self.world.run()
        self.every_slot_is_accounted_for()
        blocks = self.world.manager._pool.blocks
        assert {block.state for block in blocks} <= {BlockState.RESET, BlockState.REGISTERED}
        assert not any(block.pins or block.writes for block in blocks)
        assert self.world.manager.held_slots == 0
        assert not self.world.manager._onboarding._pending


TestManager = ManagerMachine.TestCase
TestManager.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
