"""Asked over HTTP, as an orchestrator would."""

import asyncio
import json
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
import uvloop
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from dynamo.errors import ConfigError
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.runtime.health import Health
from dynamo.runtime.listening_socket import bind
from dynamo.runtime.system_server import EmbeddedServer, system_app, system_server
from dynamo.testing import eventually, run_strictly, within


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


@pytest.fixture
def runtime() -> DistributedRuntime:
    return DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))


async def get(port: int | None, path: str, method: str = "GET") -> tuple[int, str, str]:
    """Status, content type and body."""

    def ask() -> tuple[int, str, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.headers["content-type"], response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["content-type"], error.read().decode()

    return await within(asyncio.to_thread(ask))


async def test_health_follows_what_is_served(runtime: DistributedRuntime) -> None:
    async with system_server(runtime.health, runtime.registry, host="127.0.0.1", port=0) as port:
        status, _, body = await get(port, "/health")
        assert (status, json.loads(body)["status"]) == (503, "unhealthy")
        assert (await get(port, "/live"))[0] == 200
        await runtime.endpoint("a.b.c").start(echo)
        status, _, body = await get(port, "/health")
        assert (status, json.loads(body)["status"]) == (200, "healthy")
        assert json.loads(body)["endpoints"] == {"a.b.c": "ready"}
        runtime.set_health_status(False)
        assert (await get(port, "/health"))[0] == 503
        runtime.set_health_status(True)
        await within(runtime.close())
        status, _, body = await get(port, "/health")
        assert (status, json.loads(body)["endpoints"]) == (503, {"a.b.c": "not ready"})
        assert (await get(port, "/live"))[0] == 200


async def test_metrics_can_be_scraped(runtime: DistributedRuntime) -> None:
    await runtime.endpoint("a.b.c").start(echo)
    client = await runtime.endpoint("a.b.c").client()
    for _ in range(3):
        assert [item.data() async for item in await client.generate(1)] == [1]
    await eventually(lambda: runtime.shared.metrics.endpoint("a", "b", "c").inflight == 0)
    async with system_server(runtime.health, runtime.registry, host="127.0.0.1", port=0) as port:
        status, content_type, text = await get(port, "/metrics")
    assert status == 200
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    samples = {
        (sample.name, sample.labels.get("le")): sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    labels = {"dynamo_namespace": "a", "dynamo_component": "b", "dynamo_endpoint": "c"}
    requests = samples["dynamo_component_requests_total", None]
    assert (requests.value, requests.labels) == (3, labels)
    assert samples["dynamo_component_inflight_requests", None].value == 0
    assert samples["dynamo_component_request_duration_seconds_count", None].value == 3
    assert samples["dynamo_component_request_duration_seconds_bucket", "+Inf"].value == 3
    await within(runtime.close())


async def test_unknown_paths_and_methods(runtime: DistributedRuntime) -> None:
    async with system_server(runtime.health, runtime.registry, host="127.0.0.1", port=0) as port:
        assert (await get(port, "/nothing"))[0] == 404
        assert (await get(port, "/health", "POST"))[0] == 405
        assert (await get(port, "/health", "HEAD"))[0] == 503


async def test_turned_off(runtime: DistributedRuntime) -> None:
    async with system_server(runtime.health, runtime.registry, host="127.0.0.1", port=-1) as port:
        assert port is None


async def test_address_that_cannot_be_used(runtime: DistributedRuntime) -> None:
    async with system_server(runtime.health, runtime.registry, host="127.0.0.1", port=0) as port:
        assert port is not None
        for taken in (port, 65536):
            with pytest.raises(ConfigError, match=str(taken)):
                async with system_server(runtime.health, runtime.registry, host="127.0.0.1", port=taken):
                    pass
    async with system_server(runtime.health, runtime.registry, host="127.0.0.1", port=port) as again:
        assert again == port


def test_a_crowd_is_let_in_within_few_turns() -> None:
    """uvloop's own server would take one connection in each turn of the event loop, and a busy one's are long."""
    crowd = 100

    async def run() -> None:
        app = system_app(Health(), CollectorRegistry())
        server = EmbeddedServer(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        sock = bind("127.0.0.1", 0)
        address = sock.getsockname()
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        await eventually(lambda: server.started)
        clients = [socket.create_connection(address) for _ in range(crowd)]
        for _ in range(10):
            await asyncio.sleep(0)
        let_in = len(server.server_state.connections)
        server.should_exit = True
        await within(serving)
        for client in clients:
            client.settimeout(10)
            assert client.recv(1) == b"", "they are let go"
            client.close()
        assert let_in == crowd
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)

    run_strictly(run(), uvloop.new_event_loop)
