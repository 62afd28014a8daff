"""What workers say of their load, heard over the request plane."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

from dynamo.frontend.fleet_watcher import UnwatchedFleets, WatchedFleets
from dynamo.frontend.overload_config import OverloadConfig
from dynamo.llm.served_model import ServedModel
from dynamo.protocols.load import WorkerLoad
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.testing import eventually


async def test_loads_of_the_workers_of_a_model() -> None:
    runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    used_blocks = 9
    reports = 0

    async def load(request: object) -> AsyncIterator[list[WorkerLoad]]:
        yield [WorkerLoad(kv_used_blocks=used_blocks, kv_total_blocks=10)]

    async def generate(request: object) -> AsyncIterator[str]:
        yield ""

    def on_report() -> None:
        nonlocal reports
        reports += 1

    component = runtime.namespace("n").component("backend")
    await component.endpoint("load").start(load)
    await component.endpoint("generate").start(generate)
    client = await component.endpoint("generate").client()
    await client.wait_for_instances()
    model = cast("ServedModel", SimpleNamespace(instances=client.instances))
    fleets = WatchedFleets(runtime, OverloadConfig(active_decode_blocks_threshold=0.5), on_report, interval_s=0.01)
    assert not fleets.is_busy(model), "nothing is known yet"
    await eventually(lambda: fleets.is_busy(model))
    used_blocks, before = 5, reports
    await eventually(lambda: not fleets.is_busy(model))
    assert reports > before
    await fleets.aclose()
    await runtime.close()


async def test_nobody_wants_to_know() -> None:
    fleets = UnwatchedFleets()
    assert not fleets.is_busy(cast("ServedModel", None))
    await fleets.aclose()
