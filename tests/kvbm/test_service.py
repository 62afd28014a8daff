"""The service as a process, and engines that come and go."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from dynamo.kvbm.connection import Connection
from dynamo.kvbm.frames import frame, reply_reader
from dynamo.kvbm.pools import Pools
from dynamo.kvbm.server import KvbmServer
from dynamo.kvbm.socket_path import connect
from dynamo.kvbm.tiers import PoolTiers
from dynamo.protocols.kvbm import (
    KVBM_VERSION,
    Attach,
    Clear,
    Done,
    Figures,
    Follow,
    Inspect,
    PoolFigures,
    PoolOptions,
    Refused,
    Reply,
    Report,
    Stop,
    StorageTier,
    TierChanges,
    TierFigures,
    Verify,
)
from dynamo.testing.program import Program, program
from dynamo.testing.waiting import DEADLINE_S, eventually, within
from tests.kvbm.scripted_service import SLOT_BYTES, attach
from tests.kvbm.services import TestClient, TestEngine, connected, content, key, keys, names, service

NUMBERS = list(range(1, 21))
NO_BLOCK: list[bytes] = []


def engine(
    path: Path,
    owner: str = "engine",
    disk: Path | None = None,
    store: Path | None = None,
    peers: bool = False,
    slots: int = 64,
) -> TestEngine:
    options = PoolOptions(host_bytes=slots * SLOT_BYTES, disk_filter="none", peers=peers)
    if disk is not None:
        options = msgspec.structs.replace(options, disk_bytes=256 * SLOT_BYTES, disk_dir=str(disk))
    if store is not None:
        options = msgspec.structs.replace(options, object_url=f"file://{store}")
    scheduler = msgspec.structs.replace(attach(owner), options=options)
    return TestEngine(path, scheduler, msgspec.structs.replace(scheduler, rank=0))


async def figures(path: Path) -> PoolFigures:
    async with connected(path) as client:
        client.say(Inspect())
        reply = await client.hear()
        assert isinstance(reply, Figures)
        return reply.pools[0]


def tier(pool: PoolFigures, name: StorageTier) -> TierFigures:
    return next(tier for tier in pool.tiers if tier.tier is name)


async def until(path: Path, name: StorageTier, condition: Callable[[TierFigures], bool]) -> None:
    """Asks the service again and again: it tells nobody of each of its steps."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition(tier(await figures(path), name)):
            pass


async def until_ready(path: Path, name: StorageTier) -> None:
    """What is stored before does not go down."""
    await until(path, name, lambda figures: figures.state == "ready")


async def until_tier(path: Path, name: StorageTier, blocks: int) -> None:
    await until(path, name, lambda figures: figures.blocks == blocks)


async def test_what_one_engine_stores_another_reads(path: Path) -> None:
    async with service(path):
        one, other = engine(path, "one"), engine(path, "other")
        await one.store(NUMBERS)
        assert await one.read(NUMBERS) == [content(number) for number in NUMBERS]
        assert await other.read([*NUMBERS, 99]) == [content(number) for number in NUMBERS]
        one.close()
        other.close()
        later = engine(path, "later")
        assert len(await later.read(NUMBERS)) == len(NUMBERS), "blocks outlive their engine"
        pool = await figures(path)
        assert (pool.engines, pool.lookups) == (1, 3)
        assert tier(pool, StorageTier.HOST).hits == 3 * len(NUMBERS)
        later.close()


async def test_engines_of_other_pools_find_nothing(path: Path) -> None:
    async with service(path):
        one = engine(path, "one")
        await one.store(NUMBERS)
        spec = msgspec.structs.replace(attach("two").pool, namespace=b"o" * 16)
        there = msgspec.structs.replace(attach("two"), pool=spec)
        other = TestEngine(path, there, msgspec.structs.replace(there, rank=0))
        assert await other.read(NUMBERS) == NO_BLOCK
        one.close()
        other.close()


async def test_a_killed_service_costs_its_memory_and_nothing_else(path: Path, tmp_path: Path) -> None:
    async with service(path) as first:
        here = engine(path, disk=tmp_path)
        await until_ready(path, StorageTier.DISK)
        await here.store(NUMBERS)
        await until_tier(path, StorageTier.DISK, len(NUMBERS))
        generation = here.client.generation
        assert here.client.pool == here.pool.pool
        first.signal(signal.SIGKILL)
        await first.exit_code()
        await eventually(lambda: not here.pool.alive())
        here.client.poll(1.0)
        assert not here.client.connected
        assert here.client.look_up(key(1), 0) is None
        assert bytes(here.pool.slot(0)), "the memory stays with who has mapped it"
    async with service(path):
        there = engine(path, disk=tmp_path)
        await until_tier(path, StorageTier.DISK, len(NUMBERS))
        assert await there.read(NUMBERS) == [content(number) for number in NUMBERS]
        await here.connected()
        assert here.client.generation == generation + 1
        assert here.client.pool == there.pool.pool
        assert here.client.pool != here.pool.pool, "it has to map the new memory"
        here.close()
        there.close()


async def test_what_went_to_an_object_store_any_service_finds(path: Path, tmp_path: Path) -> None:
    async with service(path):
        here = engine(path, store=tmp_path)
        await until_ready(path, StorageTier.OBJECT)
        await here.store(NUMBERS)
        await until(path, StorageTier.OBJECT, lambda figures: figures.stored_blocks >= len(NUMBERS))
        here.close()
    async with service(path.with_name("other")):
        there = engine(path.with_name("other"), store=tmp_path)
        await until_ready(path.with_name("other"), StorageTier.OBJECT)
        assert await there.read(NUMBERS) == [content(number) for number in NUMBERS]
        there.close()


async def test_what_another_host_holds_is_read_from_there(path: Path, tmp_path: Path) -> None:
    flags = ("--file-kv", str(tmp_path))
    elsewhere = path.with_name("elsewhere")
    async with service(elsewhere, *flags), service(path, *flags):
        far, near = engine(elsewhere, peers=True), engine(path, peers=True)
        for each in (path, elsewhere):
            await until_ready(each, StorageTier.PEER)
        await far.store(NUMBERS)
        found: list[bytes] = []
        async with asyncio.timeout(10):
            while not found:  # until discovery has told
                found = await near.read(NUMBERS)
        assert found == [content(number) for number in NUMBERS]
        assert tier(await figures(path), StorageTier.PEER).fetched_blocks == len(NUMBERS)
        far.close()
        near.close()


async def test_a_client_that_does_not_read_is_cut_off(path: Path) -> None:
    async with service(path) as process, connected(path) as client:
        client.say(attach())
        for _ in range(40_000):
            client.say(Inspect())
        await process.line("does not read")
        assert await figures_of_all(path), "others are served"


async def test_a_service_that_hangs_holds_nobody_up(path: Path) -> None:
    async with service(path) as process:
        here = engine(path)
        await here.store(NUMBERS)
        process.signal(signal.SIGSTOP)
        started_s = time.monotonic()
        lookup = here.client.look_up(keys(NUMBERS), 1000)
        assert lookup is not None
        here.client.poll(0.02)
        here.client.release([lookup])
        here.client.report(Report())
        assert time.monotonic() - started_s < 1.0
        assert here.client.answer(lookup) is None
        process.signal(signal.SIGCONT)
        assert len(await here.read(NUMBERS)) == len(NUMBERS)
        here.close()


@contextlib.asynccontextmanager
async def engine_process(path: Path, part: str) -> AsyncIterator[Program]:
    """Says which slots it has when it is about to fill them, for ever."""
    async with program(["-m", "tests.kvbm.filling_engine", str(path), part]) as process:
        await process.line("filling")
        yield process


async def slots_given_out(here: TestEngine, first: int) -> set[int]:
    """Which slots an engine gets for far more new blocks than the pool has room for."""
    return set(await here.store(range(first, first + 300)))


async def test_slots_of_a_killed_engine_are_free_when_all_its_processes_are_gone(path: Path) -> None:
    async with service(path), engine_process(path, "rank") as rank:
        here = engine(path, "here")
        async with engine_process(path, "scheduler") as scheduler:
            held = {int(slot) for slot in (await scheduler.line("filling")).split()[1:]}
            assert held
            scheduler.signal(signal.SIGKILL)
            await scheduler.exit_code()
        assert not held & await slots_given_out(here, 1000), "its rank may be in the midst of a copy"
        rank.signal(signal.SIGKILL)
        await rank.exit_code()
        assert held <= await slots_given_out(here, 2000)
        here.close()


async def test_of_two_that_start_together_one_serves(path: Path) -> None:
    arguments = ["-m", "dynamo.kvbm", "--kvbm-socket", str(path)]
    async with program(arguments) as one, program(arguments) as other:
        ended = await asyncio.wait(
            [asyncio.create_task(one.exit_code()), asyncio.create_task(other.exit_code())],
            return_when=asyncio.FIRST_COMPLETED,
        )
        loser, winner = (one, other) if "already" in one.output else (other, one)
        assert await loser.exit_code() == 1
        await winner.line("ready")
        assert await figures_of_all(path) == []
        winner.signal(signal.SIGTERM)
        assert await winner.exit_code() == 0
        await eventually(lambda: not path.exists())
        await asyncio.gather(*(task for tasks in ended for task in tasks))


async def figures_of_all(path: Path) -> list[PoolFigures]:
    async with connected(path) as client:
        client.say(Inspect())
        reply = await client.hear()
        assert isinstance(reply, Figures)
        return reply.pools


@pytest.mark.parametrize(
    "said", [b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n", b"\x01\0\0\0\xc1", b"\x03\0\0\0\x93\x63\x00"]
)
async def test_garbage_ends_its_own_connection(path: Path, said: bytes) -> None:
    async with service(path):
        here = engine(path)
        await here.store(NUMBERS)
        async with connected(path) as stranger:
            stranger.writer.write(said)
            assert isinstance(await stranger.hear(), Refused)
            assert await stranger.ended()
        assert len(await here.read(NUMBERS)) == len(NUMBERS)
        here.close()


async def test_who_does_not_come_to_the_point_is_not_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then is not a word: others need the place."""
    monkeypatch.setattr("dynamo.kvbm.connection.FIRST_WORD_S", 0.05)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    with there:
        await loop.connect_accepted_socket(
            lambda: Connection(lambda _: None, lambda *_: None, lambda _: ended.set()), here
        )
        there.send(b"\x05")
        await within(ended.wait())


@contextlib.asynccontextmanager
async def serving(path: Path) -> AsyncIterator[None]:
    """In this process, without any pool."""
    pools = Pools(lambda *_: PoolTiers(storages=[], release=lambda: None), None)
    server = KvbmServer(path, pools, asyncio.Event())
    server.start()
    try:
        yield
    finally:
        await server.close()


async def test_who_verifies_and_goes_is_not_verified_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, over = asyncio.Event(), asyncio.Event()

    async def slow(_: object) -> Done:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            over.set()
        return Done()

    monkeypatch.setattr("dynamo.kvbm.server.verify", slow)
    monkeypatch.setattr("dynamo.kvbm.pools.Pools.named", lambda *_: [None])
    async with serving(path):
        async with connected(path) as client:
            client.say(Verify())
            await within(begun.wait())
        await within(over.wait())


async def test_who_clears_and_goes_has_it_cleared(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it would come back with the next start of the service."""
    begun, go_on, cleared = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Pool:
        async def clear(self, tiers: object) -> None:
            begun.set()
            await go_on.wait()
            cleared.set()

    monkeypatch.setattr("dynamo.kvbm.pools.Pools.named", lambda *_: [Pool()])
    async with serving(path):
        async with connected(path) as client:
            client.say(Clear(tiers=[StorageTier.DISK]))
            await within(begun.wait())
        async with connected(path) as other:  # once it is answered, the service knows that the first has gone
            other.say(Inspect())
            await other.hear()
        go_on.set()
        await within(cleared.wait())


async def test_one_verification_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(_: object) -> Done:
        await asyncio.Event().wait()
        return Done()

    monkeypatch.setattr("dynamo.kvbm.server.verify", slow)
    monkeypatch.setattr("dynamo.kvbm.pools.Pools.named", lambda *_: [None])
    async with serving(path), connected(path) as client:
        client.say(Verify())
        client.say(Verify())
        assert isinstance(await client.hear(), Refused)


def wrong_attaches() -> Iterator[Attach]:
    right = attach()
    yield msgspec.structs.replace(right, version=KVBM_VERSION + 1)
    yield msgspec.structs.replace(right, options=PoolOptions(host_bytes=100))
    yield msgspec.structs.replace(right, options=PoolOptions(host_bytes=1 << 20, policy="fifo"))
    yield msgspec.structs.replace(right, pool=msgspec.structs.replace(right.pool, namespace=b"short"))
    yield msgspec.structs.replace(right, pool=msgspec.structs.replace(right.pool, rank_bytes=-5))


async def test_pools_that_cannot_be(path: Path) -> None:
    async with service(path):
        for wrong in wrong_attaches():
            async with connected(path) as client:
                client.say(wrong)
                reply = await client.hear()
                assert isinstance(reply, Refused)
                assert reply.code == "config_error"
        assert await figures_of_all(path) == []
        here = engine(path)
        other_form = msgspec.structs.replace(attach("o").pool, rank_bytes=999)
        async with connected(path) as client:
            client.say(msgspec.structs.replace(attach("o"), pool=other_form))
            assert isinstance(await client.hear(), Refused)
        here.close()


async def test_an_engine_that_commits_what_it_was_not_granted_is_refused(path: Path) -> None:
    async with service(path) as process:
        here = engine(path)
        await here.slots(1)
        here.client.commit([63], key(1), names([1]))
        await process.line("is refused")
        here.close()


async def test_without_engines_it_ends(path: Path) -> None:
    async with service(path, "--kvbm-linger", "0.3") as process:
        here = engine(path)
        await here.store(NUMBERS)
        await asyncio.to_thread(here.close)
        assert await process.exit_code() == 0
        await eventually(lambda: not path.exists())


async def test_it_is_told_to_end(path: Path) -> None:
    async with service(path) as process:
        async with connected(path) as client:
            client.say(Stop())
            assert await client.hear() == Done()
        assert await process.exit_code() == 0


async def first_account(client: TestClient, kind: StorageTier) -> set[bytes]:
    while True:
        reply = await client.hear()
        if isinstance(reply, TierChanges) and reply.tier is kind:
            assert reply.reset
            return {reply.stored[i : i + 8] for i in range(0, len(reply.stored), 8)}


async def test_a_follower_is_told_of_what_there_is_and_what_changes(path: Path) -> None:
    async with service(path), connected(path) as follower:
        follower.say(Follow(version=KVBM_VERSION, owner="engine"))  # it may come before the engine
        await figures_of_all(path)
        here = engine(path, slots=64)
        here.client.poll(5.0)
        assert await first_account(follower, StorageTier.HOST) == set()
        await here.store(NUMBERS)
        stored = b""
        while len(stored) < 8 * len(NUMBERS):
            reply = await follower.hear()
            if isinstance(reply, TierChanges):
                assert not reply.reset or reply.tier is StorageTier.DISK
                stored += reply.stored
        assert stored == names(NUMBERS)
        async with connected(path) as late:
            late.say(Follow(version=KVBM_VERSION, owner="engine"))
            assert await first_account(late, StorageTier.HOST) == {names([number]) for number in NUMBERS}
            while not isinstance(reply := await late.hear(), Figures):
                pass
            assert reply.pools[0].engines == 1
        async with connected(path) as client:
            client.say(Clear(tiers=[StorageTier.HOST]))
            assert await client.hear() == Done()
        removed = b""
        while len(removed) < 8 * len(NUMBERS):
            reply = await follower.hear()
            removed += reply.removed if isinstance(reply, TierChanges) else b""
        assert await here.read(NUMBERS) == NO_BLOCK
        here.close()


async def test_verifying_finds_what_was_changed_on_the_disk(path: Path, tmp_path: Path) -> None:
    async with service(path):
        here = engine(path, disk=tmp_path)
        await until_ready(path, StorageTier.DISK)
        await here.store(NUMBERS)
        await until_tier(path, StorageTier.DISK, len(NUMBERS))
        async with connected(path) as client:
            client.say(Verify())
            assert await client.hear() == Done(checked=len(NUMBERS), dropped=0)
            spoil_one_block(tmp_path)
            client.say(Verify())
            assert await client.hear() == Done(checked=len(NUMBERS), dropped=1)
            client.say(Verify())
            assert await client.hear() == Done(checked=len(NUMBERS) - 1, dropped=0)
        assert tier(await figures(path), StorageTier.DISK).checksum_failures == 1
        assert len(await here.read(NUMBERS)) == len(NUMBERS), "host memory has it still"
        here.close()


async def test_who_has_an_answer_may_ask_again(path: Path) -> None:
    """At once: by a thread that does not share the service's event loop, so that nothing keeps them in step."""

    def ask_in_turn() -> Iterator[Reply]:
        with connect(path, DEADLINE_S) as client:
            reader = reply_reader()
            for _ in range(1000):
                client.sendall(frame(Verify()))
                yield from reader.feed(client.recv(1 << 10))

    async with service(path):
        assert await asyncio.to_thread(lambda: list(ask_in_turn())) == [Done()] * 1000


def spoil_one_block(directory: Path) -> None:
    (slab,) = directory.glob("*/*.slab")
    data = slab.read_bytes()
    at = data.rindex(content(7)[:400])
    with slab.open("r+b") as file:
        os.pwrite(file.fileno(), b"spoilt", at)


async def test_metrics_and_health(path: Path) -> None:
    async with service(path, "--system-port", "0") as process:
        here = engine(path)
        await here.store(NUMBERS)
        port = (await process.line("system server on")).rpartition(":")[2]
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        assert 'dynamo_kvbm_blocks{pool="m (6e6e6e6e)",tier="host"} 20.0' in text
        assert 'dynamo_kvbm_tier_ready{pool="m (6e6e6e6e)",tier="host"} 1.0' in text
        here.close()
