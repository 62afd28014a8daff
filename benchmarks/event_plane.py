"""`python -m benchmarks.event_plane`: what a worker's KV events cost it, a broker, and routers of any number.

One process is the worker, another one holds all routers, each with connections of its own, a third is the broker. They
do nothing else, so what they need of the CPU is what an event costs.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from benchmarks.process_tree import cpu_s
from dynamo.protocols.kv_events import BlockStored, KvEventBatch
from dynamo.router.publisher import KV_EVENTS_ENDPOINT, KvEventFeed
from dynamo.router.subscriber import FeedSubscriber
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.runtime.event_feed import FeedItem
from dynamo.testing import eventually
from dynamo.testing.nats_server import nats_server
from dynamo.tokens import hash_array, hashes_to_bytes

EVENTS = 2000
INTERVAL_S = 0.002  # as of an engine's steps
ROUTERS = (1, 8, 32)
WORKER = "--worker"  # be the worker, and publish the number of events that is read from the input
DEADLINE_S = 60.0
GENERATE = "bench.backend.generate"
EVENT = KvEventBatch(0, [BlockStored(hashes_to_bytes(hash_array(range(4))))])


@dataclass(slots=True)
class Router:
    """Counts events, as FeedSink: what they say is not the question."""

    runtime: DistributedRuntime
    events: int = 0
    subscriber: FeedSubscriber = field(init=False)

    def __post_init__(self) -> None:
        endpoint = self.runtime.endpoint(GENERATE).id.beside(KV_EVENTS_ENDPOINT)
        client = self.runtime.client(endpoint, FeedItem)
        self.subscriber = FeedSubscriber(client, self, event_plane=self.runtime.event_plane)

    def follows(self, worker: int) -> bool:
        by_broker = self.runtime.config.event_plane == "nats"
        return self.subscriber.broadcast_feeds == 1 if by_broker else self.subscriber.has_feed(worker)

    def apply_payload(self, instance_id: int, payload: msgspec.Raw) -> None:
        self.events += 1

    def add_part(self, instance_id: int, payload: msgspec.Raw) -> None: ...

    def end_dump(self, instance_id: int) -> None: ...

    def drop_dump(self, instance_id: int) -> None: ...

    def forget(self, instance_id: int) -> None: ...

    async def close(self) -> None:
        await self.subscriber.close()
        await self.runtime.close()


async def be_worker() -> None:
    """Says its instance id when it can be followed; publishes; ends when its input does."""
    runtime, feed = DistributedRuntime(), KvEventFeed()
    await feed.start(runtime.endpoint(GENERATE))
    print(runtime.instance_id, flush=True)
    for _ in range(int(await asyncio.to_thread(sys.stdin.readline))):
        feed.publish(EVENT)
        await asyncio.sleep(INTERVAL_S)
    await asyncio.to_thread(sys.stdin.read)
    await runtime.close()


async def measure(event_plane: str, count: int) -> list[float]:
    """CPU time per event of the worker, of the broker and of each router, in microseconds."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = await stack.enter_async_context(nats_server(directory))
        config = RuntimeConfig(file_kv=str(directory / "kv"), event_plane=event_plane, nats_server=broker.url)
        environ = {"DYN_FILE_KV": str(directory / "kv"), "DYN_EVENT_PLANE": event_plane, "NATS_SERVER": broker.url}
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.event_plane", WORKER),
            env=os.environ | environ,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        instance_id = int(await worker.stdout.readline())
        routers = [Router(DistributedRuntime(config=config)) for _ in range(count)]
        await eventually(lambda: all(router.follows(instance_id) for router in routers), DEADLINE_S)
        before = _spent(worker.pid, broker.pid)
        worker.stdin.write(b"%d\n" % EVENTS)
        await eventually(lambda: all(router.events == EVENTS for router in routers), DEADLINE_S)
        spent = [(after - b) / EVENTS * 1e6 for after, b in zip(_spent(worker.pid, broker.pid), before, strict=True)]
        worker.stdin.close()
        await asyncio.gather(worker.wait(), *(router.close() for router in routers))
        return [spent[0], spent[1], spent[2] / count]


def _spent(worker: int, broker: int) -> list[float]:
    """CPU seconds of the worker, the broker, and this process, which is the routers."""
    return [cpu_s(worker), cpu_s(broker), time.process_time()]


def main(argv: Sequence[str] | None = None) -> int:
    if WORKER in (sys.argv[1:] if argv is None else argv):
        asyncio.run(be_worker())
        return 0
    print("| event plane | routers | worker µs/event | broker µs/event | each router µs/event |\n|---|--:|--:|--:|--:|")
    for event_plane in ("direct", "nats"):
        for count in ROUTERS:
            worker, broker, router = asyncio.run(measure(event_plane, count))
            print(f"| {event_plane} | {count} | {worker:.0f} | {broker:.0f} | {router:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
