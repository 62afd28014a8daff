"""The block manager of another host, with the first so many blocks. Says when it can be found, and what is pinned."""

import asyncio
import sys
from collections.abc import Sequence

from dynamo.kvbm.peer_endpoint import PeerEndpoint, Pin
from dynamo.kvbm.peers import blocks_endpoint
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.distributed import DistributedRuntime
from tests.kvbm.held_blocks import HeldBlocks
from tests.kvbm.storage.small_pool import small_pool


class ReportedBlocks(HeldBlocks):
    def pin(self, keys: Sequence[bytes]) -> Pin:
        pin = super().pin(keys)
        print(f"pin {pin.id}.", flush=True)
        return pin

    def unpin(self, pin: Pin) -> None:
        super().unpin(pin)
        print(f"unpin {pin.id}.", flush=True)


async def main(directory: str, count: int) -> None:
    runtime = DistributedRuntime(config=RuntimeConfig(file_kv=directory))
    async with small_pool(f"far-{runtime.instance_id:x}") as pool:
        endpoint = blocks_endpoint("test", pool.layout.namespace)
        blocks = ReportedBlocks(pool, range(count))
        serving = PeerEndpoint(runtime, endpoint, pool.agent, pool.arena, pool.layout, blocks)
        await serving.start()
        print(f"serving as {runtime.instance_id:x}", flush=True)
        await runtime.wait_for_shutdown()


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
