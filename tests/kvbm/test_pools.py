"""Which pools there are, and for how long."""

import os
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from dynamo.errors import ConfigError, NotFoundError
from dynamo.kvbm.arena import HostArena
from dynamo.kvbm.layout import PoolLayout
from dynamo.kvbm.pools import POOLS_MAX, Pools
from dynamo.kvbm.tiers import PoolTiers
from dynamo.protocols.kvbm import Attach, PoolOptions
from dynamo.testing.waiting import eventually, within
from tests.kvbm.scripted_service import attach

MakePools = Callable[..., Pools]


@pytest.fixture
async def make_pools() -> AsyncIterator[MakePools]:
    made: list[Pools] = []

    def tiers(options: PoolOptions, layout: PoolLayout, arena: HostArena) -> PoolTiers:
        return PoolTiers(storages=[], release=lambda: None)

    def make(linger_s: float | None, first_engine_s: float = 0.0) -> Pools:
        made.append(Pools(tiers, linger_s, first_engine_s=first_engine_s))
        return made[-1]

    yield make
    for pools in made:
        await pools.close()


def attach_to(namespace: bytes, owner: str = "engine") -> Attach:
    asked = attach(owner)
    return msgspec.structs.replace(asked, pool=msgspec.structs.replace(asked.pool, namespace=namespace.ljust(16)))


async def test_engines_of_one_namespace_share_a_pool(make_pools: MakePools) -> None:
    pools = make_pools(None)
    one, other = pools.engine(attach_to(b"a", "one")), pools.engine(attach_to(b"a", "other"))
    third = pools.engine(attach_to(b"b", "third"))
    assert one.pool is other.pool
    assert one.pool is not third.pool
    assert pools.engine(attach_to(b"a", "one")) is one
    assert [figures.engines for figures in pools.figures()] == [2, 1]
    assert len(pools.named(b"")) == 2
    assert pools.named(b"b".ljust(16)) == [third.pool]
    with pytest.raises(NotFoundError):
        pools.named(b"nobody's")
    with pytest.raises(ConfigError, match="two pools"):
        pools.engine(attach_to(b"b", "one"))


async def test_the_first_engine_decides_how_large_it_is(
    make_pools: MakePools, caplog: pytest.LogCaptureFixture
) -> None:
    pools = make_pools(None)
    first = pools.engine(attach("one"))
    again = msgspec.structs.replace(attach("other"), options=PoolOptions(host_bytes=1 << 30))
    assert pools.engine(again).pool is first.pool
    assert "stays as its first engine has asked for it" in caplog.text


async def test_there_are_not_any_number_of_them(make_pools: MakePools) -> None:
    pools = make_pools(None)
    for number in range(POOLS_MAX):
        pools.engine(attach_to(bytes([65 + number]), str(number)))
    with pytest.raises(ConfigError, match="pools already"):
        pools.engine(attach_to(b"one more", "one more"))


async def test_a_pool_without_engines_gives_its_memory_back(make_pools: MakePools) -> None:
    pools = make_pools(0.05)
    used = pools.engine(attach_to(b"used", "a"))
    used.add_rank("rank a")
    left = pools.engine(attach_to(b"left", "b"))
    left.add_rank("rank b")
    arena = left.pool.arena
    await eventually(lambda: arena.ready == arena.slots)
    pools.left("b", "rank b")
    assert len(pools.figures()) == 2, "its engine may be back in a moment"
    await eventually(lambda: len(pools.figures()) == 1)
    await eventually(lambda: os.fstat(arena.fd).st_blocks == 0)
    assert os.fstat(used.pool.arena.fd).st_blocks
    with pytest.raises(TimeoutError):
        await within(pools.abandoned(), 0.2)
    pools.left("a", "rank a")
    await within(pools.abandoned())


async def test_an_engine_that_is_back_finds_its_pool(make_pools: MakePools) -> None:
    pools = make_pools(0.1)
    engine = pools.engine(attach("one"))
    engine.add_rank("rank")
    pools.left("one", "rank")
    again = pools.engine(attach("two"))
    assert again.pool is engine.pool
    late = pools.engine(attach("one"))
    assert late.name != engine.name, "what its processes were told before, they must not do now"
    late.add_rank("rank")
    assert pools.engine(attach("one")).name == late.name
    with pytest.raises(TimeoutError):
        await within(pools.abandoned(), 0.3)
    assert len(pools.figures()) == 1


async def test_nobody_ever_came(make_pools: MakePools) -> None:
    await within(make_pools(0.01).abandoned())
    with pytest.raises(TimeoutError):
        await within(make_pools(0.01, 60.0).abandoned(), 0.1)  # the first engine may take long to load
    with pytest.raises(TimeoutError):
        await within(make_pools(None).abandoned(), 0.05)
