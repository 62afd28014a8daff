"""Writes blocks to a disk tier, batch after batch over one another, and counts them. It is to be killed."""

import asyncio
import itertools
import sys

from dynamo.kvbm.storage.disk import DiskStorage
from tests.kvbm.storage.small_pool import copies, small_pool

PLACES = 32
BATCH = 8


async def main(directory: str) -> None:
    async with small_pool("writer") as pool:
        disk = DiskStorage(pool.agent, pool.arena, pool.layout, directory, PLACES)
        await disk.open()
        for turn in itertools.count():
            places = [(turn * BATCH + i) % PLACES for i in range(BATCH)]
            some = copies(range(turn * BATCH, (turn + 1) * BATCH), places)
            pool.fill(some)
            await disk.write(some)
            print(f"batch {turn}.", flush=True)


asyncio.run(main(sys.argv[1]))
