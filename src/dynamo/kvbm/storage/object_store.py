"""An object store below host memory: each block is an object, under a key that says what it is.

What any host has put there, all of the same namespace find. Nothing is known of it before it is asked for.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from dynamo.errors import ConnectionLostError, DeadlineExceededError, NotFoundError
from dynamo.kvbm.layout import PoolLayout
from dynamo.kvbm.slot import HEADER_BYTES, SlotHeader
from dynamo.kvbm.storage.base import Copy, Outcome, Stored
from dynamo.kvbm.storage.seals import THREADS, Seals
from dynamo.kvbm.storage.threads import finish, together
from dynamo.protocols.kvbm import KEY_BYTES, StorageTier
from dynamo.transfer import Agent, Blocks, ObjectStore, Region, open_store
from dynamo.transfer.objects import ShortObjectError
from dynamo.transfer.threads import Threads

TIMEOUT_S = 10.0  # of a batch
FIND_TIMEOUT_S = 1.0  # somebody waits for it
REQUESTS_MAX = 16  # under way, of a call


class ObjectStorage:
    """As Storage."""

    tier = StorageTier.OBJECT
    capacity: int | None = None

    def __init__(
        self,
        agent: Agent,
        arena: Region,
        layout: PoolLayout,
        url: str,
        *,
        opener: Callable[[str], ObjectStore] = open_store,
    ) -> None:
        """`arena` are the pool's slots, registered with the agent; `url` is one for open_store()."""
        self._agent = agent
        self._arena = arena
        self._layout = layout
        self._url = url
        self._opener = opener
        self._opened: ObjectStore | None = None
        self._threads = Threads(THREADS, "kvbm-object")
        self._seals = Seals(arena, layout, self._threads)

    async def open(self) -> list[Stored]:
        """Sees whether the store answers. Raises ConfigError for a URL that is none."""
        self._opened = await finish(self._threads.submit(self._opener, self._url))
        async with _deadline(TIMEOUT_S):
            await self._has(bytes(KEY_BYTES))
        return []

    async def write(self, copies: Sequence[Copy]) -> None:
        await self._seals.seal(copies)
        with self._objects(copies, writable=True) as there:
            await self._agent.write(self._slots(copies), there, timeout_s=TIMEOUT_S)

    async def read(self, copies: Sequence[Copy]) -> list[Outcome]:
        try:
            await self._fetch(copies)
        except (NotFoundError, ShortObjectError):  # of one: which is told by each alone
            fetched = await together(map(self._fetch_one, copies))
        else:
            fetched = [Outcome.READ] * len(copies)
        here = [copy for copy, outcome in zip(copies, fetched, strict=True) if outcome is Outcome.READ]
        checked = iter(await self._seals.check(here))
        return [next(checked) if outcome is Outcome.READ else outcome for outcome in fetched]

    async def forget(self, blocks: Sequence[Stored]) -> None:
        """Deletes them, for all hosts."""
        async with _deadline(TIMEOUT_S):
            await _few_at_a_time(self._store.delete(self._name(block.key)) for block in blocks)

    async def find(self, keys: Sequence[bytes]) -> int:
        """As Storage.find(). When the store is slow, as many as are known by FIND_TIMEOUT_S."""
        has: dict[int, bool] = {}
        try:
            async with _deadline(FIND_TIMEOUT_S):
                await _few_at_a_time(self._ask(keys, has))
        except DeadlineExceededError:
            if not has.get(0, False):
                raise
        return next(i for i in range(len(keys) + 1) if not has.get(i, False))

    async def clear(self) -> None:
        """Deletes all blocks of the pool's namespace, for all hosts."""
        async for page in self._store.keys(self._layout.namespace.hex()):
            async with _deadline(TIMEOUT_S):
                await _few_at_a_time(self._store.delete(name) for name in page)

    async def close(self) -> None:
        self._opened = None
        await self._threads.close()

    @property
    def _store(self) -> ObjectStore:
        if self._opened is None:
            raise ConnectionLostError(f"{self._url} is not open")
        return self._opened

    def _name(self, key: bytes) -> str:
        return f"{self._layout.namespace.hex()}/{key.hex()}"

    def _slots(self, copies: Iterable[Copy]) -> Blocks:
        size_bytes = self._layout.slot_bytes
        return self._arena.blocks([copy.slot * size_bytes for copy in copies], size_bytes)

    @contextmanager
    def _objects(self, copies: Sequence[Copy], *, writable: bool) -> Iterator[Blocks]:
        names = [self._name(copy.block.key) for copy in copies]
        size_bytes = self._layout.slot_bytes
        region = self._agent.register_objects(self._store, names, size_bytes, writable=writable)
        try:
            yield region.blocks(range(0, region.size_bytes, size_bytes), size_bytes)
        finally:
            self._agent.deregister(region)

    async def _fetch(self, copies: Sequence[Copy]) -> None:
        with self._objects(copies, writable=False) as there:
            await self._agent.read(self._slots(copies), there, timeout_s=TIMEOUT_S)

    async def _fetch_one(self, copy: Copy) -> Outcome:
        try:
            await self._fetch([copy])
        except NotFoundError:
            return Outcome.ABSENT
        except ShortObjectError:
            return Outcome.CORRUPT
        return Outcome.READ

    def _ask(self, keys: Sequence[bytes], has: dict[int, bool]) -> Iterator[Coroutine[Any, Any, None]]:
        """Questions for one key after the other, up to the first that is seen to be absent."""

        async def ask(index: int) -> None:
            has[index] = await self._has(keys[index])

        for index in range(len(keys)):
            if not all(has.values()):
                return
            yield ask(index)

    async def _has(self, key: bytes) -> bool:
        """By its header: what is something else is not there."""
        try:
            (header,) = await self._store.get_ranges(self._name(key), [0], [HEADER_BYTES])
        except (NotFoundError, ShortObjectError):
            return False
        found = SlotHeader.read(header) if len(header) == HEADER_BYTES else None
        wanted = (self._layout.namespace, key, self._layout.payload_bytes)
        return found is not None and (found.namespace, found.key, found.payload_bytes) == wanted


async def _few_at_a_time(requests: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of them, or up to the first that fails."""
    waiting = iter(requests)
    workers = [asyncio.create_task(_work(waiting)) for _ in range(REQUESTS_MAX)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _work(requests: Iterator[Coroutine[Any, Any, None]]) -> None:
    for request in requests:
        await request


@asynccontextmanager
async def _deadline(timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise DeadlineExceededError(f"the object store has not answered for {timeout_s} s") from error
