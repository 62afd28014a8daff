"""`python -m benchmarks.dump`: how long a router's event loop stands still while a dump of a million blocks arrives.

The worker's feed and the router's index are in one process, with a request plane between them. The first dump fills an
empty index. The others replace a former one: with the same blocks, and with others. Times are CPU times; each kernel
has a process of its own.
"""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence

import msgspec

from dynamo.protocols.kv_events import HASH_BYTES, BlockStored, KvEventBatch
from dynamo.router.held_blocks import PART_BLOCKS
from dynamo.router.indexer import KvIndexer
from dynamo.router.kernel import KERNEL, VARIABLE
from dynamo.router.subscriber import FeedSubscriber
from dynamo.runtime import Client, DistributedRuntime, RuntimeConfig
from dynamo.runtime.event_feed import EventFeed, FeedItem
from dynamo.testing import eventually

BLOCKS = 1_000_000
ENDPOINT = "bench.backend.kv_events"
ONE = "--one"  # measure the kernel of this process, for the table of another
DEADLINE_S = 120.0


class Row(msgspec.Struct, frozen=True):
    """What one dump took."""

    name: str
    longest_turn_s: float
    whole_s: float


class Turns:
    """Watches the turns of the event loop, until stop()."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._began_s = time.process_time()
        self._next = asyncio.get_running_loop().call_soon(self._turn)

    def stop(self) -> None:
        self._next.cancel()

    def _turn(self) -> None:
        now_s = time.process_time()
        self.longest_s = max(self.longest_s, now_s - self._began_s)
        self._began_s = now_s
        self._next = asyncio.get_running_loop().call_soon(self._turn)


async def measure() -> list[Row]:
    rng = random.Random(1)  # noqa: S311 - no secrets here
    first, others = _parts(rng), _parts(rng)
    indexer = KvIndexer()
    runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    rows = []
    for number, (name, parts) in enumerate(
        [("the first", first), ("the same blocks again", first), ("other blocks", others)]
    ):
        feed = EventFeed(lambda: parts)  # noqa: B023 - read before the next one
        await feed.start(runtime.endpoint(ENDPOINT))
        client = await runtime.endpoint(ENDPOINT).client(response_type=FeedItem)
        rows.append(await _follow(name, client, indexer))
        await client.close()
        await runtime.stop_serving(runtime.endpoint(ENDPOINT).id)
        feed.close()
        assert indexer.dumps == number + 1
    await runtime.close(graceful=False)
    return rows


async def _follow(name: str, client: Client, indexer: KvIndexer) -> Row:
    """A subscriber that has seen nothing, and so gets a dump."""
    turns, began_s = Turns(), time.process_time()
    subscriber = FeedSubscriber(client, indexer)
    await eventually(lambda: bool(client.instance_ids()) and subscriber.has_feed(client.instance_ids()[0]), DEADLINE_S)
    whole_s = time.process_time() - began_s
    turns.stop()
    await subscriber.close()
    return Row(name, turns.longest_s, whole_s)


def _parts(rng: random.Random) -> list[KvEventBatch]:
    sizes = [PART_BLOCKS] * (BLOCKS // PART_BLOCKS) + [BLOCKS % PART_BLOCKS]
    return [KvEventBatch(0, [BlockStored(rng.randbytes(HASH_BYTES * size))]) for size in sizes]


def main(argv: Sequence[str] | None = None) -> int:
    if ONE in (sys.argv[1:] if argv is None else argv):
        sys.stdout.buffer.write(msgspec.json.encode((KERNEL.name, asyncio.run(measure()))))
        return 0
    print("| kernel | dump | longest turn ms | whole ms |\n|---|---|--:|--:|")
    for name, rows in map(_measure_apart, ("", "python")):
        for row in rows:
            print(f"| {name} | {row.name} | {row.longest_turn_s * 1e3:.1f} | {row.whole_s * 1e3:,.0f} |")
    return 0


def _measure_apart(wanted: str) -> tuple[str, list[Row]]:
    done = subprocess.run(  # noqa: S603 - this very file
        [sys.executable, "-m", "benchmarks.dump", ONE],
        env={**os.environ, VARIABLE: wanted},
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=tuple[str, list[Row]])


if __name__ == "__main__":
    raise SystemExit(main())
