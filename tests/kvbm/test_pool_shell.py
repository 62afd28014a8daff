"""A pool in this process: memory that is short, tiers that fail, answers in time."""

from collections.abc import AsyncIterator, Callable

import pytest

from dynamo.errors import ConnectionLostError, InvalidRequestError
from dynamo.kvbm.arena import MARGIN_BYTES, HostArena
from dynamo.kvbm.effects import Change
from dynamo.kvbm.pool_shell import PoolShell
from dynamo.kvbm.slot import seal
from dynamo.kvbm.storage.base import Stored
from dynamo.kvbm.tiers import PoolTiers
from dynamo.protocols.kvbm import (
    Commit,
    Discard,
    Found,
    Granted,
    LookUp,
    PoolOptions,
    Release,
    Reply,
    Report,
    StorageTier,
)
from dynamo.testing.waiting import eventually
from tests.kvbm.scripted_service import SLOT_BYTES, SPEC
from tests.kvbm.scripted_storage import ScriptedStorage
from tests.kvbm.services import key, keys, names

SLOTS = 64
OPTIONS = PoolOptions(host_bytes=SLOTS * SLOT_BYTES, disk_filter="none", onboard_timeout_ms=300)


class Engine:
    """A session, and what it was told."""

    def __init__(self, pool: PoolShell) -> None:
        self.heard: list[Reply] = []
        self.pool = pool
        self.session = pool.attach(self.heard.append)

    def answers(self, lookup: int) -> list[Found]:
        return [reply for reply in self.heard if isinstance(reply, Found) and reply.lookup == lookup]

    def granted(self) -> list[int]:
        return [slot for reply in self.heard if isinstance(reply, Granted) for slot in reply.slots]

    async def answer(self, lookup: int) -> Found:
        await eventually(lambda: any(not found.coming for found in self.answers(lookup)))
        return self.answers(lookup)[-1]

    def look_up(self, lookup: int, numbers: list[int], wait_ms: int = 1000) -> None:
        self.pool.on_request(self.session, LookUp(lookup, keys(numbers), wait_ms))


MakePool = Callable[..., PoolShell]


@pytest.fixture
async def make_pool() -> AsyncIterator[MakePool]:
    pools: list[PoolShell] = []

    def make(*storages: ScriptedStorage, free: Callable[[], int] | None = None) -> PoolShell:
        arena = HostArena(SLOTS, SLOT_BYTES, **({} if free is None else {"available_bytes": free}))
        tiers = PoolTiers(storages=storages, release=lambda: None)
        pool = PoolShell(SPEC, OPTIONS, arena, tiers, memory_retry_s=0.01)
        pool.start()
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        await pool.close()


async def test_short_memory_is_said_once_and_taken_when_it_is_there(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    free, asked = MARGIN_BYTES + 16 * SLOT_BYTES, 0

    def free_bytes() -> int:
        nonlocal asked
        asked += 1
        return free if asked == 1 or free > MARGIN_BYTES + 16 * SLOT_BYTES else 0

    pool = make_pool(free=free_bytes)
    await eventually(lambda: asked > 5)
    assert pool.arena.ready == 16
    engine = Engine(pool)
    await eventually(lambda: bool(engine.granted()))
    assert max(engine.granted()) < 16, "it serves with what it has"
    assert caplog.text.count("memory is short") == 1
    free = 1 << 40
    await eventually(lambda: pool.arena.ready == SLOTS)
    await eventually(lambda: "all its memory now" in caplog.text)
    assert pool.manager.tier_figures()[0].capacity_bytes == SLOTS * SLOT_BYTES


async def test_a_lookup_is_answered_in_time_while_the_disk_hangs(make_pool: MakePool) -> None:
    storage = ScriptedStorage()
    storage.blocks = {key(n): Stored(key(n), n, n) for n in range(8)}
    pool = make_pool(storage)
    await eventually(lambda: pool.runners[StorageTier.DISK].is_open and pool.arena.ready == SLOTS)
    engine = Engine(pool)
    storage.go.clear()
    engine.look_up(1, list(range(8)))
    assert engine.answers(1) == [Found(1, [], 8, [0, 0, 0, 0])], "at once, with what is under way"
    assert (await engine.answer(1)).slots == []
    assert pool.figures(1).late_lookups == 1
    storage.go.set()
    pool.on_request(engine.session, Release([1]))
    engine.look_up(2, list(range(8)))
    assert len((await engine.answer(2)).slots) == 8


async def test_a_disk_that_fails_is_a_miss_and_its_state_says_why(make_pool: MakePool) -> None:
    storage = ScriptedStorage()
    storage.blocks = {key(n): Stored(key(n), n, n) for n in range(8)}
    pool = make_pool(storage)
    changes: list[Change] = []

    class Listening:
        def changed(self, change: Change) -> None:
            changes.append(change)

    pool.listeners.add(Listening())
    await eventually(lambda: pool.runners[StorageTier.DISK].is_open and pool.arena.ready == SLOTS)
    engine = Engine(pool)
    storage.error = ConnectionLostError("unplugged")
    engine.look_up(1, list(range(8)))
    assert (await engine.answer(1)).slots == []
    await eventually(lambda: pool.figures(1).tiers[1].state == "unplugged")
    await eventually(lambda: any(len(change.removed) == 8 for change in changes))


async def test_a_block_of_an_object_store_is_known_by_what_its_header_says(make_pool: MakePool) -> None:
    storage = ScriptedStorage(StorageTier.OBJECT, None)
    storage.blocks = {key(7): Stored(key(7), 0)}
    pool = make_pool(storage)
    await eventually(lambda: pool.runners[StorageTier.OBJECT].is_open and pool.arena.ready == SLOTS)
    for slot in range(SLOTS):  # as a real store would have brought it
        seal(pool.arena.slot(slot), namespace=SPEC.namespace, key=key(7), name=77, payload_bytes=1000)
    engine = Engine(pool)
    engine.look_up(1, [7])
    assert len((await engine.answer(1)).slots) == 1
    assert [block.name for block in pool.manager.snapshot(StorageTier.HOST)] == [77]


async def test_what_an_engine_cannot_mean(make_pool: MakePool) -> None:
    pool = make_pool()
    engine = Engine(pool)
    wrong = [
        LookUp(1, b"short", 0),
        Commit([1], key(1), b""),
        Commit([1, 2], key(1), names([1])),
        Commit([SLOTS], key(1), names([1])),
        Discard([SLOTS]),
        Release([5]),
    ]
    for request in wrong:
        with pytest.raises(InvalidRequestError):
            pool.on_request(engine.session, request)  # type: ignore[arg-type]


async def test_reports_add_up(make_pool: MakePool) -> None:
    pool = make_pool()
    one, other = Engine(pool), Engine(pool)
    pool.on_request(one.session, Report(onboarded_blocks=2, onboard_s=0.5, dropped_offloads=1))
    pool.on_request(other.session, Report(onboarded_blocks=3, offloaded_blocks=7, offload_s=2.0))
    figures = pool.figures(2)
    assert (figures.onboarded_blocks, figures.onboard_s, figures.offloaded_blocks) == (5, 0.5, 7)
    assert (figures.offload_s, figures.dropped_offloads, figures.engines) == (2.0, 1, 2)
