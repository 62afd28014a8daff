"""`python -m benchmarks.kvbm_disk`: how fast the block manager's disk tier writes and reads batches of blocks.

Beside it stands a plain copy of the same bytes to and from one file, past the page cache, a batch in one call. Both
have the same slots of memory and files of one size in one directory; they take turns, batch after batch. The tier makes
a checksum of each block on its way down and compares it on its way up. A figure is the median of the batches.
"""

import argparse
import asyncio
import mmap
import os
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import uvloop

from dynamo.errors import InternalError
from dynamo.kvbm.layout import PoolLayout
from dynamo.kvbm.slot import HEADER_BYTES, slot_bytes
from dynamo.kvbm.storage.base import Copy, Outcome, Stored
from dynamo.kvbm.storage.disk import DiskStorage
from dynamo.transfer import Agent

PAYLOADS_KB = [360, 1024, 2048]  # of a block: SmolLM2-135M has 360, models of 8B have 2048
BATCH = 16  # blocks, as the service takes them
BATCHES = 24
Way = Callable[[Sequence[int]], Awaitable[None]]  # of slots, which are places as well


class DirectFile:
    """As much of a file as one writes without a block manager."""

    def __init__(self, path: Path, memory: memoryview, size_bytes: int) -> None:
        """`memory` is a number of blocks of `size_bytes`."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        self._memory = memory
        self._size_bytes = size_bytes
        os.posix_fallocate(self._descriptor, 0, len(memory))

    async def write(self, slots: Sequence[int]) -> None:
        await asyncio.to_thread(os.pwritev, self._descriptor, self._pieces(slots), slots[0] * self._size_bytes)

    async def read(self, slots: Sequence[int]) -> None:
        await asyncio.to_thread(os.preadv, self._descriptor, self._pieces(slots), slots[0] * self._size_bytes)

    def close(self) -> None:
        os.close(self._descriptor)

    def _pieces(self, slots: Sequence[int]) -> list[memoryview]:
        return [self._memory[slot * self._size_bytes : (slot + 1) * self._size_bytes] for slot in slots]


class Tier:
    """The disk tier, in the same terms."""

    def __init__(self, storage: DiskStorage) -> None:
        self._storage = storage

    async def write(self, slots: Sequence[int]) -> None:
        await self._storage.write(_copies(slots))

    async def read(self, slots: Sequence[int]) -> None:
        outcomes = await self._storage.read(_copies(slots))
        if set(outcomes) != {Outcome.READ}:
            raise InternalError(f"blocks have not come back: {outcomes}")


async def measure(directory: Path, batches: int) -> str:
    """The table."""
    rows = [await _row(directory, payload_kb << 10, batches) for payload_kb in PAYLOADS_KB]
    heading = (
        f"| KB per block | written GB/s, {BATCH} at a time | plain copy | of it | read GB/s | plain copy | of it |"
    )
    return "\n".join([heading, "|--:|" + "--:|" * 6, *rows])


async def _row(directory: Path, payload_bytes: int, batches: int) -> str:
    size_bytes = slot_bytes(payload_bytes)
    layout = PoolLayout(namespace=b"benchmark" + bytes(7), payload_bytes=payload_bytes, slot_bytes=size_bytes)
    async with Agent("benchmark") as agent:
        arena = agent.register(_filled(batches * BATCH, size_bytes))
        with _scratch(directory) as scratch:
            storage = DiskStorage(agent, arena, layout, scratch, batches * BATCH)
            await storage.open()
            plain = DirectFile(scratch / "plain", arena.view(), size_bytes)
            try:
                figures = await _take_turns(Tier(storage), plain, batches)
            finally:
                plain.close()
                await storage.close()
        agent.deregister(arena)
    cells: list[str] = []
    for tier_s, plain_s in figures:
        tier, copy = (BATCH * size_bytes / median(seconds) / 1e9 for seconds in (tier_s, plain_s))
        cells += [f"{tier:.2f}", f"{copy:.2f}", f"{tier / copy:.2f}"]
    return f"| {payload_bytes >> 10} | " + " | ".join(cells) + " |"


async def _take_turns(tier: Tier, plain: DirectFile, batches: int) -> list[tuple[list[float], list[float]]]:
    """Seconds of each batch: of the tier and of the plain copy, written and read."""
    figures: list[tuple[list[float], list[float]]] = []
    ways: list[tuple[Way, Way]] = [(tier.write, plain.write), (tier.write, plain.write), (tier.read, plain.read)]
    for of_tier, of_plain in ways:  # written twice: the first time the files' blocks are new
        figures.append(([], []))
        for batch in range(batches):
            slots = range(batch * BATCH, (batch + 1) * BATCH)
            turns = [(of_tier, figures[-1][0]), (of_plain, figures[-1][1])]
            for way, seconds in turns if batch % 2 else turns[::-1]:
                started_s = time.perf_counter()
                await way(slots)
                seconds.append(time.perf_counter() - started_s)
    return figures[1:]


def _filled(slots: int, size_bytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, slots * size_bytes)
    pattern = random.Random(0).randbytes(size_bytes - HEADER_BYTES)  # noqa: S311 - no secrets here
    for slot in range(slots):
        memory[slot * size_bytes + HEADER_BYTES : (slot + 1) * size_bytes] = pattern
    return memory


def _copies(slots: Sequence[int]) -> list[Copy]:
    return [Copy(slot=slot, block=Stored(key=slot.to_bytes(32, "big"), name=slot, place=slot)) for slot in slots]


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=directory, prefix="kvbm-disk-") as made:
        yield Path(made)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kvbm_disk", description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path(), help="on the disk that is meant; default: this one")
    parser.add_argument("--batches", type=int, default=BATCHES)
    arguments = parser.parse_args(argv)
    print(uvloop.run(measure(arguments.directory, arguments.batches)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
