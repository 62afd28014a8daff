"""Real services, and engines as they see them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from dynamo.kvbm.client import MappedPool, ServiceClient, map_pool
from dynamo.kvbm.frames import frame, reply_reader
from dynamo.kvbm.slot import HEADER_BYTES
from dynamo.protocols.kvbm import Attach, Found, Reply, Request
from dynamo.runtime.process import READY
from dynamo.testing.program import Program, program
from dynamo.testing.waiting import DEADLINE_S, within

PAYLOAD_BYTES = 1000  # of a block of scripted_service.SPEC
SLOT_BYTES = 4096


@contextlib.asynccontextmanager
async def service(path: Path, *flags: str) -> AsyncIterator[Program]:
    """A process of its own, which listens."""
    async with program(["-m", "dynamo.kvbm", "--kvbm-socket", str(path), *flags]) as process:
        await process.line(READY)
        yield process


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def keys(numbers: Sequence[int]) -> bytes:
    return b"".join(map(key, numbers))


def names(numbers: Sequence[int]) -> bytes:
    """A block's number is its name, too."""
    return b"".join(number.to_bytes(8, "little") for number in numbers)


def content(number: int) -> bytes:
    return number.to_bytes(4, "little") * (PAYLOAD_BYTES // 4)


class TestEngine:
    """An engine's scheduler and its one rank, in this process. Nothing in it blocks for long."""

    __test__ = False

    def __init__(self, path: Path, attach: Attach, rank_attach: Attach) -> None:
        self.client = ServiceClient(path, attach)
        self.pool: MappedPool = map_pool(path, rank_attach, 5.0)

    async def connected(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not self.client.connected:
                self.client.poll(0.01)
                await asyncio.sleep(0)

    async def slots(self, count: int) -> list[int]:
        async with asyncio.timeout(DEADLINE_S):
            while self.client.granted < count:
                self.client.poll(0.01)
                await asyncio.sleep(0)
        return self.client.take_slots(count)

    async def store(self, numbers: Sequence[int]) -> list[int]:
        """Commits these blocks, a few at a time; their slots."""
        used: list[int] = []
        for start in range(0, len(numbers), 4):
            some = numbers[start : start + 4]
            slots = await self.slots(len(some))
            for slot, number in zip(slots, some, strict=True):
                self.pool.slot(slot)[HEADER_BYTES : HEADER_BYTES + PAYLOAD_BYTES] = content(number)
            self.client.commit(slots, keys(some), names(some))
            used += slots
        return used

    async def find(self, numbers: Sequence[int], wait_ms: int = 5000) -> Found:
        """The last answer."""
        lookup = None
        async with asyncio.timeout(DEADLINE_S):
            while (lookup := self.client.look_up(keys(numbers), wait_ms)) is None:
                self.client.poll(0.01)
                await asyncio.sleep(0)
            while (found := self.client.answer(lookup)) is None or found.coming:
                self.client.poll(0.01)
                await asyncio.sleep(0)
        return found

    async def read(self, numbers: Sequence[int], wait_ms: int = 5000) -> list[bytes]:
        """What is found of these blocks, as bytes."""
        found = await self.find(numbers, wait_ms)
        read = [bytes(self.pool.slot(slot)[HEADER_BYTES : HEADER_BYTES + PAYLOAD_BYTES]) for slot in found.slots]
        self.client.release([found.lookup])
        return read

    def close(self) -> None:
        self.client.close()
        self.pool.close()


class TestClient:
    """A connection that says and hears what a test wants."""

    __test__ = False

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._frames = reply_reader()
        self._heard: list[Reply] = []

    def say(self, request: Request) -> None:
        self.writer.write(frame(request))

    async def hear(self) -> Reply:
        """The next message; ConnectionError at the end."""
        while not self._heard:
            data = await within(self._reader.read(1 << 20))
            if not data:
                raise ConnectionError("the service has closed the connection")
            self._heard += self._frames.feed(data)
        return self._heard.pop(0)

    async def ended(self) -> bool:
        return not await within(self._reader.read())


@contextlib.asynccontextmanager
async def connected(path: Path) -> AsyncIterator[TestClient]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        yield TestClient(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
