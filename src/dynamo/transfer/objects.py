"""Objects of a store as the other end of transfers: any ranges of them are read, whole ones are written.

Stores like S3 have no other writes. So what comes and goes as one, such as a KV block, is best an object of its own
under a key that says what it holds: any process finds it without an index, and it is there whole or not at all.
"""

import asyncio
import ctypes
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dynamo.errors import ConnectionLostError, InvalidRequestError
from dynamo.transfer.job import Job
from dynamo.transfer.memory import Memory
from dynamo.transfer.metadata import RegionInfo

OBJECTS_MAX = 1 << 16  # that are registered together
REQUESTS_MAX = 16  # of a transfer that are under way
_READ_BYTES_MAX = 16 << 20  # of one request
_RANGES_MAX = 256  # likewise
_TICK_S = 0.02  # how long requests go on that nobody waits for any more

Requests = Iterator[Coroutine[Any, Any, None]]


class ShortObjectError(InvalidRequestError):
    """The object ends before the bytes that were asked for."""


class ObjectStore(Protocol):
    """The methods raise NotFoundError, InvalidRequestError or ConnectionLostError; a call that is cancelled ends."""

    async def get_ranges(self, key: str, starts: list[int], lengths: list[int]) -> Sequence[memoryview]:
        """These bytes of an object. Raises ShortObjectError when it has not all of them."""
        ...

    async def put(self, key: str, data: bytearray) -> None:
        """The whole object, in place of the one that may be there. The data is the store's from now on."""
        ...

    async def delete(self, key: str) -> None:
        """The object, if it is there."""
        ...

    def keys(self, directory: str) -> AsyncIterator[Sequence[str]]:
        """Of all objects below it, page by page."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Bytes of one object, and where they are in memory."""

    start: int
    address: int
    length: int


class ObjectLink:
    """As Link: the way to objects of one size, which lie one after the other in the region."""

    name = "object"
    lanes = 1  # one thread has any number of requests under way
    inline_bytes_max = 0

    def __init__(self, store: ObjectStore, keys: Sequence[str], object_bytes: int) -> None:
        """Raises InvalidRequestError for no size, or an impossible number of keys."""
        if object_bytes <= 0:
            raise InvalidRequestError(f"objects of {object_bytes} bytes cannot be registered")
        if not 0 < len(keys) <= OBJECTS_MAX or not all(keys):
            raise InvalidRequestError(f"1 to {OBJECTS_MAX} keys can be registered together, and none that is empty")
        self.size_bytes = len(keys) * object_bytes
        self._store = store
        self._keys = tuple(keys)
        self._object_bytes = object_bytes
        self._closed = False

    def reaches(self, regions: Iterable[RegionInfo]) -> bool:
        return True

    def ready(self, regions: Iterable[RegionInfo]) -> bool:
        return True

    def copy(self, job: Job) -> None:
        parts = self._parts(job)
        requests = self._writes(parts, job) if job.write else self._reads(parts, job)
        asyncio.run(self._run(requests, job))

    def close(self) -> None:
        self._closed = True

    def _parts(self, job: Job) -> dict[str, list[_Part]]:
        """The job's pieces by key, none of them of two objects."""
        found: dict[str, list[_Part]] = {}
        for (address, length), (position, _) in zip(job.local, job.remote, strict=True):
            end = position + length
            while position < end:
                index, start = divmod(position, self._object_bytes)
                size_bytes = min(end - position, self._object_bytes - start)
                part = _Part(start=start, address=address, length=size_bytes)
                found.setdefault(self._keys[index], []).append(part)
                position += size_bytes
                address += size_bytes
        return found

    def _reads(self, parts: dict[str, list[_Part]], job: Job) -> Requests:
        for key, of_object in parts.items():
            for batch in _batches(of_object):
                yield self._read(key, batch, job)

    def _writes(self, parts: dict[str, list[_Part]], job: Job) -> Requests:
        """Raises InvalidRequestError, before anything is written, for objects of which only a part would be."""
        for key, of_object in parts.items():
            of_object.sort(key=lambda part: part.start)
            ends = [0, *(part.start + part.length for part in of_object)]
            if ends[:-1] != [part.start for part in of_object] or ends[-1] != self._object_bytes:
                raise InvalidRequestError(f"a write must cover the {self._object_bytes} bytes of {key!r}, each once")
        return (self._write(key, of_object, job) for key, of_object in parts.items())

    async def _read(self, key: str, parts: list[_Part], job: Job) -> None:
        starts, lengths = [part.start for part in parts], [part.length for part in parts]
        ranges = await self._store.get_ranges(key, starts, lengths)
        for part, data in zip(parts, ranges, strict=True):
            if len(data) != part.length:
                raise ShortObjectError(f"{key!r} ends in the midst of the blocks")
            ctypes.memmove(part.address, Memory(data).address, part.length)
            job.done_bytes += part.length

    async def _write(self, key: str, parts: list[_Part], job: Job) -> None:
        """From a copy: a request that was cancelled may send a little more, of memory that is not ours any more."""
        data = bytearray(self._object_bytes)
        address = Memory(data).address
        for part in parts:
            ctypes.memmove(address + part.start, part.address, part.length)
        await self._store.put(key, data)
        job.done_bytes += len(data)

    async def _run(self, requests: Requests, job: Job) -> None:
        workers = [asyncio.create_task(_work(requests)) for _ in range(REQUESTS_MAX)]
        try:
            pending = set(workers)
            while pending:
                job.control.check()
                self._check_open()
                done, pending = await asyncio.wait(pending, timeout=_TICK_S, return_when=asyncio.FIRST_EXCEPTION)
                for worker in done:
                    worker.result()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionLostError("the objects were deregistered")


async def _work(requests: Requests) -> None:
    for request in requests:
        await request


def _batches(parts: list[_Part]) -> Iterator[list[_Part]]:
    """So that no request is too large."""
    batch: list[_Part] = []
    size_bytes = 0
    for part in parts:
        if batch and (size_bytes + part.length > _READ_BYTES_MAX or len(batch) == _RANGES_MAX):
            yield batch
            batch, size_bytes = [], 0
        batch.append(part)
        size_bytes += part.length
    yield batch
