"""The object store as a tier: what is found in it, and what goes wrong with it."""

import asyncio
import importlib.util
import signal
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from dynamo.errors import (
    ConfigError,
    ConnectionLostError,
    DeadlineExceededError,
    DynamoError,
    InvalidRequestError,
    NotFoundError,
)
from dynamo.kvbm.storage import object_store
from dynamo.kvbm.storage.base import Outcome
from dynamo.kvbm.storage.object_store import ObjectStorage
from dynamo.testing import eventually, within
from dynamo.transfer.objects import ShortObjectError
from tests.kvbm.storage.small_pool import SLOT_BYTES, SmallPool, copies, key, small_pool, stored, without_places
from tests.transfer.s3_server import INSTALLED, s3_server

READ, ABSENT, CORRUPT = Outcome.READ, Outcome.ABSENT, Outcome.CORRUPT

needs_obstore = pytest.mark.skipif(
    importlib.util.find_spec("obstore") is None, reason="NOT TESTED: object stores (pip install 'dynamo-py[object]')"
)
needs_s3 = pytest.mark.skipif(not INSTALLED, reason="NOT TESTED: S3 (pip install localbucket)")


class Store:
    """Objects in a dict. Requests may wait for `opened`, or raise what `failures` has for their key."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.failures: dict[str, DynamoError] = {}
        self.asked: list[str] = []
        self.hangs_at = ""
        self.under_way = self.under_way_max = 0

    async def get_ranges(self, key: str, starts: list[int], lengths: list[int]) -> Sequence[memoryview]:
        self.asked.append(key)
        await self._pass(key)
        if key not in self.objects:
            raise NotFoundError(key)
        data = memoryview(self.objects[key])
        if len(data) < max(start + length for start, length in zip(starts, lengths, strict=True)):
            raise ShortObjectError(key)
        return [data[start : start + length] for start, length in zip(starts, lengths, strict=True)]

    async def put(self, key: str, data: bytearray) -> None:
        await self._pass(key)
        self.objects[key] = bytes(data)

    async def delete(self, key: str) -> None:
        await self._pass(key)
        self.objects.pop(key, None)

    async def keys(self, directory: str) -> AsyncIterator[Sequence[str]]:
        for name in [name for name in self.objects if name.startswith(f"{directory}/")]:
            yield [name]

    async def _pass(self, key: str) -> None:
        self.under_way += 1
        self.under_way_max = max(self.under_way_max, self.under_way)
        try:
            if key == self.hangs_at:
                await asyncio.Event().wait()
            await asyncio.sleep(0)
        finally:
            self.under_way -= 1
        if key in self.failures:
            raise self.failures[key]


@pytest.fixture
async def pool() -> AsyncIterator[SmallPool]:
    async with small_pool() as made:
        yield made


@pytest.fixture
def store() -> Store:
    return Store()


def storage_of(pool: SmallPool, store: Store) -> ObjectStorage:
    return ObjectStorage(pool.agent, pool.arena, pool.layout, "memory:///", opener=lambda _: store)


@pytest.fixture
async def storage(pool: SmallPool, store: Store) -> AsyncIterator[ObjectStorage]:
    made = storage_of(pool, store)
    assert await within(made.open()) == []
    store.asked.clear()
    yield made
    await within(made.close())


def name(pool: SmallPool, number: int) -> str:
    return f"{pool.layout.namespace.hex()}/{key(number).hex()}"


async def written(pool: SmallPool, storage: ObjectStorage, count: int) -> None:
    some = without_places(copies(range(count)))
    pool.fill(some)
    await within(storage.write(some))
    pool.wipe()


async def read_back(pool: SmallPool, storage: ObjectStorage, count: int) -> list[Outcome]:
    some = without_places(copies(range(count)))
    outcomes = await within(storage.read(some))
    pool.right(some, outcomes)
    return outcomes


@needs_obstore
@pytest.mark.parametrize("kind", ["file", pytest.param("s3", marks=needs_s3)])
async def test_blocks_come_back(tmp_path: Path, kind: str, pool: SmallPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a second manager of the same pool, too."""

    async def check(url: str) -> None:
        storage = ObjectStorage(pool.agent, pool.arena, pool.layout, url)
        assert await within(storage.open()) == []
        await written(pool, storage, 40)
        assert await read_back(pool, storage, 40) == [READ] * 40
        await within(storage.close())
        again = ObjectStorage(pool.agent, pool.arena, pool.layout, url)
        await within(again.open())
        assert await within(again.find([key(i) for i in range(50)])) == 40
        await within(again.forget([stored(5), stored(99)]))
        assert await within(again.find([key(i) for i in range(50)])) == 5
        assert await read_back(pool, again, 42) == [READ] * 5 + [ABSENT] + [READ] * 34 + [ABSENT] * 2
        await within(again.clear())
        assert await within(again.find([key(0)])) == 0
        await within(again.close())

    if kind == "file":
        await check(tmp_path.as_uri())
    else:
        async with s3_server(tmp_path) as server:
            for variable, value in {
                "AWS_ENDPOINT": f"http://127.0.0.1:{server.port}",
                "AWS_ALLOW_HTTP": "true",
                "AWS_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": "any",
                "AWS_SECRET_ACCESS_KEY": "any",
            }.items():
                monkeypatch.setenv(variable, value)
            await check("s3://bucket/some/prefix")


async def test_how_many_there_are(pool: SmallPool, storage: ObjectStorage, store: Store) -> None:
    """It asks for one after the other, some at a time, and for little more than the first that is absent."""
    await written(pool, storage, 60)
    keys = [key(i) for i in range(60)]
    assert await within(storage.find(keys)) == 60
    assert store.asked == [name(pool, i) for i in range(60)]
    assert 1 < store.under_way_max <= object_store.REQUESTS_MAX
    del store.objects[name(pool, 20)], store.objects[name(pool, 23)]
    store.asked.clear()
    assert await within(storage.find(keys)) == 20
    assert len(store.asked) <= 20 + object_store.REQUESTS_MAX
    assert await within(storage.find([])) == 0
    assert await within(storage.find([key(99), key(1)])) == 0


async def test_what_is_something_else_is_not_there(pool: SmallPool, storage: ObjectStorage, store: Store) -> None:
    await written(pool, storage, 3)
    for other in (b"", bytes(SLOT_BYTES), store.objects[name(pool, 2)]):
        store.objects[name(pool, 1)] = other
        assert await within(storage.find([key(i) for i in range(3)])) == 1
        assert await read_back(pool, storage, 3) == [READ, CORRUPT, READ]
    async with small_pool("other", bytes(16)) as other_pool:
        other_storage = storage_of(other_pool, store)
        await within(other_storage.open())
        assert await within(other_storage.find([key(0)])) == 0
        store.objects[name(other_pool, 0)] = store.objects[name(pool, 0)]
        assert await within(other_storage.find([key(0)])) == 0
        assert await read_back(other_pool, other_storage, 1) == [CORRUPT]
        await within(other_storage.close())


@pytest.mark.parametrize("how", ["bit", "short", "exchanged"])
async def test_objects_that_were_tampered_with(pool: SmallPool, storage: ObjectStorage, store: Store, how: str) -> None:
    await written(pool, storage, 8)
    one, two = name(pool, 2), name(pool, 5)
    expected = [READ] * 8
    expected[2] = CORRUPT
    if how == "bit":
        content = bytearray(store.objects[one])
        content[7000] ^= 4
        store.objects[one] = bytes(content)
    elif how == "short":
        store.objects[one] = store.objects[one][:5000]
    else:
        store.objects[one], store.objects[two] = store.objects[two], store.objects[one]
        expected[5] = CORRUPT
    assert await read_back(pool, storage, 8) == expected


async def test_a_store_that_fails(pool: SmallPool, storage: ObjectStorage, store: Store) -> None:
    await written(pool, storage, 4)
    for failure in (InvalidRequestError("forbidden"), ConnectionLostError("gone")):
        store.failures[name(pool, 2)] = failure
        for use in (
            storage.read(without_places(copies(range(4)))),
            storage.write(without_places(copies(range(4)))),
            storage.find([key(i) for i in range(4)]),
            storage.forget([stored(2)]),
            storage.clear(),
        ):
            with pytest.raises(type(failure)):
                await within(use)
        store.failures[f"{pool.layout.namespace.hex()}/{bytes(32).hex()}"] = failure
        with pytest.raises(type(failure)):
            await within(storage.open())
        store.failures.clear()
        await within(storage.open())
        await written(pool, storage, 4)
        assert await read_back(pool, storage, 4) == [READ] * 4


async def test_a_store_that_does_not_answer(
    pool: SmallPool, storage: ObjectStorage, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await written(pool, storage, 40)
    monkeypatch.setattr(object_store, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(object_store, "FIND_TIMEOUT_S", 0.1)
    keys = [key(i) for i in range(40)]
    store.hangs_at = name(pool, 25)
    assert await within(storage.find(keys)) == 25  # for certain
    store.hangs_at = name(pool, 0)
    for use in (
        storage.find(keys),
        storage.read(without_places(copies(range(4)))),
        storage.write(without_places(copies(range(4)))),
        storage.forget([stored(0)]),
        storage.clear(),
    ):
        with pytest.raises(DeadlineExceededError):
            await within(use)
    assert store.under_way == 0
    store.hangs_at = ""
    assert await within(storage.find(keys)) > 0


class Halting(Store):
    """The first block is asked for twice and fails then; the second time the others wait for `go`."""

    def __init__(self, first: str) -> None:
        super().__init__()
        self.first = first
        self.go = threading.Event()

    async def _pass(self, key: str) -> None:
        await super()._pass(key)
        if self.asked.count(key) < 2:
            return
        if key == self.first:
            raise ConnectionLostError("gone")
        await asyncio.to_thread(self.go.wait)


async def test_a_read_that_fails_has_ended_for_all_its_blocks(pool: SmallPool) -> None:
    """Their slots are others' from then on."""
    store = Halting(name(pool, 0))
    storage = storage_of(pool, store)
    await within(storage.open())
    await written(pool, storage, 2)
    del store.objects[name(pool, 0)]
    store.asked.clear()
    reading = asyncio.create_task(storage.read(without_places(copies(range(2)))))
    await eventually(lambda: store.asked.count(name(pool, 1)) == 2)
    asyncio.get_running_loop().call_later(0.2, store.go.set)
    with pytest.raises(ConnectionLostError):
        await within(reading)
    assert store.go.is_set(), "a block was still being read"
    await within(storage.close())


async def test_who_is_cancelled(pool: SmallPool, storage: ObjectStorage, store: Store) -> None:
    await written(pool, storage, 4)
    store.hangs_at = name(pool, 1)
    some = without_places(copies(range(4)))
    for use in (storage.find([key(i) for i in range(4)]), storage.read(some), storage.write(some)):
        task = asyncio.create_task(use)
        await eventually(lambda: store.under_way > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(task)
        assert store.under_way == 0


@needs_obstore
@needs_s3
async def test_a_server_that_is_killed(tmp_path: Path, pool: SmallPool) -> None:
    async with s3_server(tmp_path) as server:
        storage = ObjectStorage(pool.agent, pool.arena, pool.layout, "s3://bucket", opener=lambda _: server.store())
        await within(storage.open())
        await written(pool, storage, 4)
        server.process.signal(signal.SIGKILL)
        await server.process.exit_code()
        for use in (storage.find([key(0)]), storage.read(without_places(copies([0])))):
            with pytest.raises((ConnectionLostError, DeadlineExceededError)):
                await within(use, 20)
        await within(storage.close())


@needs_obstore
async def test_a_url_that_is_none(pool: SmallPool) -> None:
    storage = ObjectStorage(pool.agent, pool.arena, pool.layout, "nonsense")
    with pytest.raises(ConfigError):
        await within(storage.open())
    with pytest.raises(ConnectionLostError):
        await within(storage.find([key(0)]))
    await within(storage.close())
    await within(storage.close())
