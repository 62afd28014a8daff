"""`python -m benchmarks.rpc_load JOB`: calls the endpoint of rpc_service and measures it."""

import asyncio
import os
import sys
import time

import msgspec
import uvloop

from benchmarks.meter import Meter
from benchmarks.rpc_service import ENDPOINT
from dynamo.runtime import Client, DistributedRuntime, dynamo_worker

_START_TIMEOUT_S = 30.0


class RpcJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to call, and whom to measure."""

    server_pid: int
    items: int  # of each reply
    concurrency: int
    warm_up_s: float
    seconds: float


class RpcSample(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured."""

    calls: int
    elapsed_s: float
    server_cpu_s: float
    client_cpu_s: float
    foreign_percent: float


@dynamo_worker()
async def measure(runtime: DistributedRuntime, job: RpcJob) -> RpcSample:
    """Warms up, then measures."""
    client = await runtime.endpoint(ENDPOINT).client()
    await client.wait_for_instances(_START_TIMEOUT_S)
    await _run(client, job, job.warm_up_s)
    meter = Meter({"server": [job.server_pid], "client": [os.getpid()]})
    calls = await _run(client, job, job.seconds)
    spent = meter.stop()
    return RpcSample(
        calls=calls,
        elapsed_s=spent.elapsed_s,
        server_cpu_s=spent.cpu_s["server"],
        client_cpu_s=spent.cpu_s["client"],
        foreign_percent=spent.foreign_percent,
    )


async def _run(client: Client, job: RpcJob, seconds: float) -> int:
    deadline_s = time.perf_counter() + seconds
    return sum(await asyncio.gather(*(_call_until(client, job.items, deadline_s) for _ in range(job.concurrency))))


async def _call_until(client: Client, items: int, deadline_s: float) -> int:
    calls = 0
    while time.perf_counter() < deadline_s:
        received = 0
        async for _ in await client.generate({"items": items}):
            received += 1
        if received != items:
            raise RuntimeError(f"a reply of {received} items, not {items}")
        calls += 1
    return calls


async def _main(job: RpcJob) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(await measure(job)))


if __name__ == "__main__":
    uvloop.run(_main(msgspec.json.decode(sys.argv[1], type=RpcJob)))
