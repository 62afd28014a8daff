"""Objects: what is asked of a store, when that ends, and what goes wrong with it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from dynamo.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    RequestCancelledError,
)
from dynamo.testing import eventually, within
from dynamo.transfer import Agent, objects

OBJECT_BYTES = 1000


class Store:
    """Objects in a dict; each request is put down, and waits for `opened`."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.reads: list[tuple[str, list[int], list[int]]] = []
        self.writes: list[str] = []
        self.opened, self.arrived = threading.Event(), threading.Event()
        self.opened.set()
        self.under_way = self.under_way_max = self.cancelled = 0

    async def get_ranges(self, key: str, starts: list[int], lengths: list[int]) -> Sequence[memoryview]:
        self.reads.append((key, starts, lengths))
        await self._pass()
        if key not in self.objects:
            raise NotFoundError(key)
        data = memoryview(self.objects[key])
        return [data[start : start + length] for start, length in zip(starts, lengths, strict=True)]

    async def put(self, key: str, data: bytearray) -> None:
        self.writes.append(key)
        await self._pass()
        self.objects[key] = bytes(data)

    async def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    async def keys(self, directory: str) -> AsyncIterator[Sequence[str]]:
        yield [key for key in self.objects if key.startswith(f"{directory}/")]

    async def _pass(self) -> None:
        self.under_way += 1
        self.under_way_max = max(self.under_way_max, self.under_way)
        self.arrived.set()
        try:
            await asyncio.sleep(0)  # so that others begin, too
            await eventually(self.opened.is_set)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    async with Agent("near") as made:
        yield made


async def test_keys_and_sizes_that_cannot_be(agent: Agent, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "OBJECTS_MAX", 3)
    for keys, size_bytes in (([], 1), (["a", ""], 1), (["a"] * 4, 1), (["a"], 0), (["a"], -1)):
        with pytest.raises(InvalidRequestError):
            agent.register_objects(store, keys, size_bytes)
    assert agent.register_objects(store, ["a", "b", "c"], 5).size_bytes == 15


async def test_one_request_reads_all_that_is_wanted_of_an_object(agent: Agent, store: Store) -> None:
    store.objects = {"a": bytes(range(250)) * 4, "b": bytes(range(250)) * 4}
    ours = agent.register(bytearray(100))
    theirs = agent.register_objects(store, ["a", "b"], OBJECT_BYTES)
    await within(agent.read(ours.blocks([0, 10, 20], 10), theirs.blocks([5, 995, 300], 10)))
    assert store.reads == [("a", [5, 995, 300], [10, 5, 10]), ("b", [0], [5])]
    assert bytes(ours.view()[10:20]) == bytes([*range(245, 250), *range(5)])


async def test_requests_have_a_largest_size(agent: Agent, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_READ_BYTES_MAX", 25)
    store.objects = {"a": bytes(range(250)) * 4}
    ours, theirs = agent.register(bytearray(100)), agent.register_objects(store, ["a"], OBJECT_BYTES)
    await within(agent.read(ours.blocks(range(0, 60, 10), 10), theirs.blocks(range(0, 60, 10), 10)))
    assert [starts for _, starts, _ in store.reads] == [[0, 10], [20, 30], [40, 50]]
    await within(agent.read(ours.all(), theirs.blocks([0], 100)))  # which nothing can cut
    assert bytes(ours.view()) == bytes(range(100))


async def test_requests_under_way_are_bounded(agent: Agent, store: Store) -> None:
    keys = [f"{i}" for i in range(100)]
    ours = agent.register(bytearray(100 * OBJECT_BYTES))
    theirs = agent.register_objects(store, keys, OBJECT_BYTES, writable=True)
    await within(agent.write(ours.all(), theirs.all()))
    await within(agent.read(ours.all(), theirs.all()))
    assert store.writes == keys
    assert [key for key, *_ in store.reads] == keys
    assert store.under_way_max == objects.REQUESTS_MAX


@pytest.mark.parametrize(
    ("offsets", "lengths"),
    [
        ([0], [999]),
        ([1], [999]),
        ([0, 501], [500, 499]),
        ([0, 499], [500, 501]),
        ([0, 0], [1000, 1000]),
        ([500], [1000]),
    ],
)
async def test_writes_of_a_part(agent: Agent, store: Store, offsets: list[int], lengths: list[int]) -> None:
    """A whole object in the same transfer is not written, either."""
    ours = agent.register(bytearray(10_000))
    theirs = agent.register_objects(store, ["a", "b", "whole"], OBJECT_BYTES, writable=True)
    local = ours.blocks([0], OBJECT_BYTES)
    remote = theirs.blocks([2 * OBJECT_BYTES], OBJECT_BYTES)
    for i, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        local += ours.blocks([2000 * (i + 1)], length)
        remote += theirs.blocks([offset], length)
    with pytest.raises(InvalidRequestError, match="must cover"):
        await within(agent.write(local, remote))
    assert not store.writes


async def test_objects_that_are_read_only(agent: Agent, store: Store) -> None:
    ours, theirs = agent.register(bytearray(5)), agent.register_objects(store, ["a"], 5)
    with pytest.raises(InvalidRequestError, match="read-only"):
        agent.write(ours.all(), theirs.all())


async def test_objects_that_are_absent_or_short(agent: Agent, store: Store) -> None:
    store.objects = {"a": bytes(999)}
    ours = agent.register(bytearray(2 * OBJECT_BYTES))
    theirs = agent.register_objects(store, ["a", "b"], OBJECT_BYTES)
    with pytest.raises(InvalidRequestError, match="'a' ends"):
        await within(agent.read(ours.blocks([0], OBJECT_BYTES), theirs.blocks([0], OBJECT_BYTES)))
    with pytest.raises(NotFoundError):
        await within(agent.read(ours.blocks([0], 1), theirs.blocks([OBJECT_BYTES], 1)))


@pytest.mark.alone
@pytest.mark.parametrize("how", ["cancelled", "late", "deregistered", "closed"])
@pytest.mark.parametrize("write", [True, False])
async def test_a_store_that_does_not_answer(agent: Agent, store: Store, how: str, write: bool) -> None:
    store.opened.clear()
    ours = agent.register(bytearray(3 * OBJECT_BYTES))
    theirs = agent.register_objects(store, ["a", "b", "c"], OBJECT_BYTES, writable=True)
    begin = agent.write if write else agent.read
    transfer = begin(ours.all(), theirs.all(), timeout_s=0.1 if how == "late" else 30)
    assert await within(asyncio.to_thread(store.arrived.wait, 10))
    started_s = time.monotonic()
    if how == "cancelled":
        transfer.cancel()
    elif how == "deregistered":
        agent.deregister(theirs)
    elif how == "closed":
        await within(agent.close())
    with pytest.raises((RequestCancelledError, DeadlineExceededError, ConnectionLostError)) as caught:
        await within(transfer)
    kinds = {"cancelled": RequestCancelledError, "late": DeadlineExceededError}
    assert type(caught.value) is kinds.get(how, ConnectionLostError)
    assert time.monotonic() - started_s < 1
    assert (store.under_way, store.cancelled, store.objects) == (0, 3, {})


async def test_what_is_written_is_what_was_there(agent: Agent, store: Store) -> None:
    """The store may send a little more of a request that was cancelled: not of memory that others have by then."""
    store.opened.clear()
    ours = agent.register(bytearray(b"x" * OBJECT_BYTES))
    theirs = agent.register_objects(store, ["a"], OBJECT_BYTES, writable=True)
    transfer = agent.write(ours.all(), theirs.all())
    assert await within(asyncio.to_thread(store.arrived.wait, 10))
    ours.view()[:] = bytes(OBJECT_BYTES)
    store.opened.set()
    await within(transfer)
    assert store.objects["a"] == b"x" * OBJECT_BYTES


async def test_a_store_that_hangs_holds_up_no_peer(agent: Agent, store: Store) -> None:
    store.opened.clear()
    ours = agent.register(bytearray(OBJECT_BYTES))
    theirs = agent.register_objects(store, ["a"], OBJECT_BYTES)
    hanging = [agent.read(ours.all(), theirs.all()) for _ in range(40)]
    async with Agent("far", ["tcp"]) as far:
        memory = far.register(b"y" * OBJECT_BYTES)
        agent.add_peer(far.metadata())
        await within(agent.read(ours.all(), memory.all()))
    assert bytes(ours.view()) == b"y" * OBJECT_BYTES
    for transfer in hanging:
        transfer.cancel()
    for transfer in hanging:
        with pytest.raises(RequestCancelledError):
            await within(transfer)
