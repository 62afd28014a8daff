"""Programs under @dynamo_worker, run as real processes: how they end, and what they leave."""

import asyncio
import dataclasses
import json
import os
import signal
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo.errors import ConnectionLostError, DrainingError, InvalidRequestError
from dynamo.runtime import Client, Context, DistributedRuntime, RuntimeConfig, dynamo_endpoint
from dynamo.runtime.codec import encode_payload, payload_decoder
from dynamo.runtime.component import payload_handler
from dynamo.runtime.discovery.entry_file import entry_names
from dynamo.testing import Program, eventually, program, within

# Answers "started", and "done" when something has been written to the pipe whose path is the request.
SERVER = """
import asyncio, sys
from pathlib import Path
from dynamo.runtime import DistributedRuntime, dynamo_worker
from dynamo.telemetry import logging

async def handler(request):
    yield "started"
    await asyncio.to_thread(Path(request).read_bytes)
    yield "done"

@dynamo_worker()
async def worker(runtime: DistributedRuntime):
    await runtime.endpoint("test.backend.generate").serve_endpoint(handler)
    print("left in order", flush=True)

logging.configure()
asyncio.run(worker())
"""
UVLOOP_SERVER = SERVER.replace("asyncio.run(", "import uvloop; uvloop.run(")

CLIENT = """
import asyncio
from dynamo.runtime import DistributedRuntime, dynamo_worker

@dynamo_worker()
async def client(runtime: DistributedRuntime):
    try:
        endpoint = await runtime.endpoint("test.backend.generate").client()
        await endpoint.wait_for_instances()
        async for item in await endpoint.generate("/nowhere", annotated=False):
            print("got", item, flush=True)
    finally:
        print("cleaned up", flush=True)

asyncio.run(client())
"""
UVLOOP_CLIENT = CLIENT.replace("asyncio.run(", "import uvloop; uvloop.run(")

FAILING = """
import asyncio
from dynamo.runtime import DistributedRuntime, dynamo_worker

async def handler(request):
    yield request

@dynamo_worker()
async def worker(runtime: DistributedRuntime):
    await runtime.endpoint("test.backend.generate").start(handler)
    raise RuntimeError("out of luck")

asyncio.run(worker())
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "discovery"


@pytest.fixture
async def client(directory: Path) -> AsyncIterator[Client]:
    runtime = DistributedRuntime(config=RuntimeConfig(file_kv=str(directory)))
    yield await runtime.endpoint("test.backend.generate").client()
    await within(runtime.close(graceful=False))


@pytest.fixture
def pipe(tmp_path: Path) -> str:
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    return path


@asynccontextmanager
async def serving(directory: Path, source: str = SERVER, **env: str) -> AsyncIterator[Program]:
    async with program(["-c", source], {"DYN_FILE_KV": str(directory), **env}) as server:
        yield server


def let_go(pipe: str) -> None:
    with open(pipe, "w") as file:
        file.write("go on")


@pytest.mark.parametrize("source", [SERVER, UVLOOP_SERVER], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_request_under_way_may_finish(
    directory: Path, client: Client, pipe: str, source: str, number: signal.Signals
) -> None:
    async with serving(directory, source) as server:
        await within(client.wait_for_instances())
        stream = await client.generate(pipe, annotated=False)
        assert await within(anext(stream)) == "started"
        server.signal(number)
        await eventually(lambda: entry_names(directory) == set())
        while client.instance_ids():
            await within(client.wait_for_change())
        await within(asyncio.to_thread(let_go, pipe))
        assert await within(anext(stream)) == "done"
        assert await server.exit_code() == 0
        assert "left in order" in server.output
        assert "Traceback" not in server.output


async def test_second_ctrl_c_exits_at_once(directory: Path, client: Client, pipe: str) -> None:
    async with serving(directory) as server:
        await within(client.wait_for_instances())
        stream = await client.generate(pipe, annotated=False)
        assert await within(anext(stream)) == "started"
        server.signal(signal.SIGINT)
        await server.line("shutting down")
        server.signal(signal.SIGINT)
        assert await server.exit_code() == 130
        with pytest.raises(ConnectionLostError):
            await within(anext(stream))


async def test_requests_do_not_hold_up_the_end_for_ever(directory: Path, client: Client, pipe: str) -> None:
    async with serving(
        directory,
        SERVER.replace("asyncio.to_thread(Path(request).read_bytes)", "asyncio.Event().wait()"),
        DYN_GRACEFUL_SHUTDOWN_TIMEOUT="0.05",
    ) as server:
        await within(client.wait_for_instances())
        stream = await client.generate(pipe, annotated=False)
        assert await within(anext(stream)) == "started"
        server.signal(signal.SIGTERM)
        with pytest.raises(DrainingError, match="shut down"):
            await within(anext(stream))
        assert await server.exit_code() == 0


async def test_killed_server_fails_its_streams(directory: Path, client: Client, pipe: str) -> None:
    async with serving(directory) as server:
        await within(client.wait_for_instances())
        stream = await client.generate(pipe, annotated=False)
        assert await within(anext(stream)) == "started"
        server.signal(signal.SIGKILL)
        with pytest.raises(ConnectionLostError):
            await within(anext(stream))
        while client.instance_ids():
            await within(client.wait_for_change())


@pytest.mark.parametrize("source", [CLIENT, UVLOOP_CLIENT], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_interrupted_client_cleans_up(directory: Path, source: str, number: signal.Signals, code: int) -> None:
    async def endless(request: Any) -> AsyncIterator[int]:
        yield 1
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    ended = asyncio.Event()
    runtime = DistributedRuntime(config=RuntimeConfig(file_kv=str(directory)))
    await runtime.endpoint("test.backend.generate").start(endless)
    async with serving(directory, source) as caller:
        await caller.line("got 1")
        caller.signal(number)
        assert await caller.exit_code() == code
        assert caller.output.splitlines() == ["got 1", "cleaned up"]
    await within(ended.wait())
    await within(runtime.close())


async def test_failing_worker(directory: Path) -> None:
    async with serving(directory, FAILING) as failing:
        assert await failing.exit_code() == 1
        assert "RuntimeError: out of luck" in failing.output
    assert entry_names(directory) == set()


async def test_system_server_of_a_worker(directory: Path, client: Client) -> None:
    async with serving(directory, DYN_SYSTEM_PORT="0") as server:
        url = (await server.line("system server on")).split()[-1]
        await within(client.wait_for_instances())

        def get(path: str) -> bytes:
            with urllib.request.urlopen(url + path, timeout=10) as response:
                assert response.status == 200
                body: bytes = response.read()
                return body

        health = json.loads(await asyncio.to_thread(get, "/health"))
        assert health["status"] == "healthy"
        assert health["endpoints"] == {"test.backend.generate": "ready"}
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == 0


class Point(msgspec.Struct):
    x: int
    y: int = 0


@dataclasses.dataclass
class Segment:
    start: Point
    end: Point


class Checked:
    """Has the protocol of a pydantic model."""

    def __init__(self, x: int) -> None:
        self.x = x

    @classmethod
    def model_validate(cls, value: Any) -> "Checked":
        if not isinstance(value.get("x"), int):
            raise ValueError("x must be an integer")
        return cls(value["x"])


async def answer(handler: Any, request: Any) -> list[Any]:
    """What the served handler yields."""
    decode = payload_decoder()
    replies = payload_handler(handler)(msgspec.Raw(encode_payload(request)), Context())
    return [decode(reply) async for reply in replies]


async def test_endpoint_with_a_struct() -> None:
    @dynamo_endpoint(Point, int)
    async def handler(request: Point) -> AsyncIterator[int]:
        yield request.x + request.y

    assert await answer(handler, {"x": 1, "y": 2}) == [3]
    assert await answer(handler, {"x": 1}) == [1]
    with pytest.raises(InvalidRequestError, match=r"not a Point: .*int.*str"):
        await answer(handler, {"x": "one"})
    with pytest.raises(InvalidRequestError, match="Point"):
        await answer(handler, "text")


async def test_endpoint_with_other_types() -> None:
    @dynamo_endpoint(Segment, Any)
    async def segment(request: Segment) -> AsyncIterator[Any]:
        yield request.end.x - request.start.x

    @dynamo_endpoint(list[int], int)
    async def total(request: list[int]) -> AsyncIterator[int]:
        yield sum(request)

    @dynamo_endpoint(int | str, Any)  # type: ignore[arg-type]
    async def either(request: int | str) -> AsyncIterator[Any]:
        yield request

    assert await answer(segment, {"start": {"x": 1}, "end": {"x": 5}}) == [4]
    assert await answer(total, [1, 2]) == [3]
    assert await answer(either, "x") == ["x"]
    for handler in (segment, total, either):
        with pytest.raises(InvalidRequestError):
            await answer(handler, [None])


async def test_endpoint_with_a_model_that_validates_itself() -> None:
    @dynamo_endpoint(Checked, int)
    async def handler(request: Checked) -> AsyncIterator[int]:
        yield request.x

    assert await answer(handler, {"x": 1}) == [1]
    with pytest.raises(InvalidRequestError, match="Checked: x must be"):
        await answer(handler, {"x": "one"})


async def test_endpoint_of_a_method_and_with_context() -> None:
    class Service:
        factor = 2

        @dynamo_endpoint(Point, int)
        async def plain(self, request: Point) -> AsyncIterator[int]:
            yield request.x * self.factor

        @dynamo_endpoint(Point, Any)
        async def positional(self, request: Point, context: Context) -> AsyncIterator[Any]:
            yield len(context.id())

        @dynamo_endpoint(Point, Any)
        async def named(self, request: Point, *, context: Context) -> AsyncIterator[Any]:
            yield len(context.id())

    assert await answer(Service().plain, {"x": 2}) == [4]
    assert await answer(Service().positional, {"x": 2}) == [32]
    assert await answer(Service().named, {"x": 2}) == [32]


async def test_closing_reaches_through_the_decorator() -> None:
    closed: list[bool] = []

    @dynamo_endpoint(Point, int)
    async def handler(request: Point) -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            closed.append(True)

    replies = payload_handler(handler)(msgspec.Raw(encode_payload({"x": 1})), Context())
    await anext(replies)
    await replies.aclose()
    assert closed == [True]


def test_what_cannot_be_an_endpoint() -> None:
    async def returns(request: Any) -> Any:
        return request

    with pytest.raises(TypeError, match="yield"):
        dynamo_endpoint(Point, int)(returns)  # type: ignore[arg-type]
