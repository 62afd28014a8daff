"""A pool of a few small blocks, whose bytes follow from their keys."""

import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from dynamo.kvbm.layout import PoolLayout
from dynamo.kvbm.slot import HEADER_BYTES, slot_bytes
from dynamo.kvbm.storage.base import Copy, Outcome, Stored
from dynamo.transfer import Agent, Region

NAMESPACE = b"namespace-of-16B"
PAYLOAD_BYTES = 10_000
SLOT_BYTES = slot_bytes(PAYLOAD_BYTES)
SLOTS = 64


def key(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def stored(number: int, place: int | None = None) -> Stored:
    return Stored(key=key(number), name=number, place=place)


def copies(numbers: Iterable[int], places: Iterable[int] | None = None, *, first_slot: int = 0) -> list[Copy]:
    """Each block in the next slot, and by default at the place of its number."""
    numbers = list(numbers)
    places = numbers if places is None else list(places)
    return [
        Copy(slot=first_slot + i, block=stored(number, place))
        for i, (number, place) in enumerate(zip(numbers, places, strict=True))
    ]


def without_places(some: Sequence[Copy]) -> list[Copy]:
    return [Copy(slot=copy.slot, block=stored(copy.block.name)) for copy in some]


def payload(block_key: bytes) -> bytes:
    return (block_key * (PAYLOAD_BYTES // len(block_key) + 1))[:PAYLOAD_BYTES]


@dataclass(frozen=True, slots=True)
class SmallPool:
    agent: Agent
    arena: Region
    layout: PoolLayout

    def slot(self, index: int) -> memoryview:
        return self.arena.view()[index * SLOT_BYTES : (index + 1) * SLOT_BYTES]

    def fill(self, some: Iterable[Copy]) -> None:
        for copy in some:
            self.slot(copy.slot)[HEADER_BYTES : HEADER_BYTES + PAYLOAD_BYTES] = payload(copy.block.key)

    def wipe(self) -> None:
        self.arena.view()[:] = bytes(SLOTS * SLOT_BYTES)

    def holds(self, copy: Copy) -> bool:
        return self.slot(copy.slot)[HEADER_BYTES : HEADER_BYTES + PAYLOAD_BYTES] == payload(copy.block.key)

    def right(self, some: Sequence[Copy], outcomes: Sequence[Outcome]) -> int:
        """How many were read; all of those hold what they should."""
        read = [copy for copy, outcome in zip(some, outcomes, strict=True) if outcome is Outcome.READ]
        assert all(self.holds(copy) for copy in read)
        return len(read)


@asynccontextmanager
async def small_pool(name: str = "near", namespace: bytes = NAMESPACE) -> AsyncIterator[SmallPool]:
    async with Agent(name) as agent:
        arena = agent.allocate(SLOTS * SLOT_BYTES)
        layout = PoolLayout(
            namespace=namespace, payload_bytes=PAYLOAD_BYTES, slot_bytes=SLOT_BYTES, description="a model, float16"
        )
        yield SmallPool(agent, arena, layout)
