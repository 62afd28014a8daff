"""A worker's load: said to who asks, and by way of a broker to all."""

from pathlib import Path

import pytest

from dynamo.protocols.load import LOAD_ENDPOINT, WorkerLoad
from dynamo.router.load_publisher import serve_load
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.runtime.codec import payload_decoder
from dynamo.runtime.distributed import SharedParts
from dynamo.runtime.event_plane.base import OnMessage
from dynamo.runtime.instance import EndpointId
from dynamo.testing import eventually, within
from dynamo.testing.nats_server import nats_server

GENERATE = "test.backend.generate"
LOAD = EndpointId("test", "backend", LOAD_ENDPOINT)


def into(loads: list[list[WorkerLoad]]) -> OnMessage:
    decode = payload_decoder(list[WorkerLoad])
    return lambda instance_id, payload: loads.append(decode(payload))


async def test_who_asks_is_answered() -> None:
    runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    busy = [WorkerLoad(running_requests=1)]
    await serve_load(runtime.endpoint(GENERATE), lambda: busy)
    client = runtime.client(LOAD, list[WorkerLoad])
    for _ in range(2):
        assert [answer async for answer in await within(client.generate(None, annotated=False))] == [busy]
        busy = [WorkerLoad(running_requests=2), WorkerLoad(dp_rank=1)]
    await within(runtime.close())


async def test_all_are_told_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamo.router.load_publisher.INTERVAL_S", 0.02)
    numbers = iter(range(1000))
    async with nats_server(tmp_path) as broker:
        config = RuntimeConfig(
            discovery_backend="mem", request_plane="inproc", event_plane="nats", nats_server=broker.url
        )
        shared = SharedParts()
        worker, *routers = [DistributedRuntime(config=config, shared=shared) for _ in range(3)]
        heard: list[list[list[WorkerLoad]]] = [[], []]
        for router, loads in zip(routers, heard, strict=True):
            router.event_plane.subscribe(LOAD, into(loads), lambda: None)
        await serve_load(worker.endpoint(GENERATE), lambda: [WorkerLoad(running_requests=next(numbers))])
        await eventually(lambda: all(len(loads) > 3 for loads in heard))
        for loads in heard:
            said = [load.running_requests for [load] in loads]
            assert said == list(range(said[0], said[0] + len(said)))
        for runtime in (worker, *routers):
            await within(runtime.close())
