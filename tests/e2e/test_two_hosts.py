"""A deployment over several hosts that find each other through etcd, while cables are pulled out and put back.

etcd, the frontend and two workers are on a host each: network namespaces on a switch. Nothing is ever restarted.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from dynamo.runtime.process import READY
from dynamo.testing import Program, program
from dynamo.testing.deployment import START_S
from dynamo.testing.etcd_server import ETCD, EtcdServer

from . import network
from .network import Host
from .raw_http import Response, connect, encoded, events, post
from .served import instances, until_served

WHY_NOT = network.missing() or ("" if ETCD else "there is no etcd (on Debian and Ubuntu: apt-get install etcd-server)")
pytestmark = [
    pytest.mark.alone,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(bool(WHY_NOT), reason=f"NOTHING IS TESTED OVER SEVERAL HOSTS: {WHY_NOT}"),
]

CHAT = "/v1/chat/completions"
LEASE_TTL_S = 2
STREAM_S = 40.0  # the kernel takes half a minute to give up a connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    host: Host
    program: Program
    instance: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    etcd_host: Host
    frontend_host: Host
    frontend: Program
    url: str
    workers: tuple[Worker, Worker]
    spare_host: Host
    model: Path
    environ: dict[str, str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    directory = tmp_path_factory.mktemp("hosts")
    async with AsyncExitStack() as stack:
        etcd_host, frontend_host, first, second, spare = stack.enter_context(
            network.hosts("etcd", "frontend", "first", "second", "spare")
        )
        etcd = EtcdServer(directory, host=etcd_host.address, prefix=etcd_host.prefix)
        stack.enter_context(etcd)
        environ = {
            "DYN_DISCOVERY_BACKEND": "etcd",
            "ETCD_ENDPOINTS": etcd.url,
            "ETCD_LEASE_TTL": str(LEASE_TTL_S),
            "DYN_CACHE_DIR": str(directory / "cache"),
        }
        arguments = ["-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", "0"]
        frontend = await stack.enter_async_context(program(arguments, environ, prefix=frontend_host.prefix))
        workers = await asyncio.gather(*(start_worker(stack, host, tiny_model, environ) for host in (first, second)))
        there = urlsplit((await frontend.line(READY, START_S)).removeprefix(READY))
        assert there.port is not None
        here = await stack.enter_async_context(frontend_host.reachable(there.port))
        url = f"http://127.0.0.1:{here}"
        await until_served(url, 2)
        yield Fleet(
            etcd_host=etcd_host,
            frontend_host=frontend_host,
            frontend=frontend,
            url=url,
            workers=(workers[0], workers[1]),
            spare_host=spare,
            model=tiny_model,
            environ=environ,
        )


async def start_worker(stack: AsyncExitStack, host: Host, model: Path, environ: dict[str, str]) -> Worker:
    arguments = ["-m", "dynamo.mocker", "--model-path", str(model), "--model-name", "m", "--max-model-len", "32768"]
    arguments += ["--rpc-host", host.address]
    started = await stack.enter_async_context(program(arguments, environ, prefix=host.prefix))
    await started.line(READY, START_S)
    found = re.search(r"backend\.generate as instance ([0-9a-f]+)", started.output)
    assert found
    return Worker(host=host, program=started, instance=int(found[1], 16))


def chat(worker: Worker | None = None, **fields: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "ignore_eos": True, "max_tokens": 3}
    where = {"nvext": {"backend_instance_id": worker.instance}} if worker else {}
    return encoded(body | where | fields)


async def ask(fleet: Fleet, worker: Worker | None = None) -> Response:
    return await post(fleet.url, CHAT, chat(worker))


async def assert_all_is_well(fleet: Fleet) -> None:
    """Both workers are known, under the names that they had at first, and answer."""
    assert sorted(await until_served(fleet.url, 2)) == sorted(worker.instance for worker in fleet.workers)
    for worker in fleet.workers:
        async with asyncio.timeout(START_S):
            while (answer := await ask(fleet, worker)).status != 200:
                assert answer.status in (502, 503, 504)
    assert "Traceback" not in fleet.frontend.output


async def test_chat_over_hosts(fleet: Fleet) -> None:
    for worker in fleet.workers:
        answer = await ask(fleet, worker)
        assert answer.status == 200
        assert answer.json()["usage"]["completion_tokens"] == 3


async def test_stream_outlives_a_short_cut(fleet: Fleet) -> None:
    worker, _ = fleet.workers
    async with connect(fleet.url) as stream:
        stream.post(CHAT, chat(worker, stream=True, max_tokens=100))
        await stream.head()
        chunks = stream.chunks()
        received = [await anext(chunks)]
        worker.host.cut()
        rest = asyncio.create_task(_read(chunks))
        await asyncio.wait([rest], timeout=0.5)
        worker.host.heal()
        received += await asyncio.wait_for(rest, START_S)
    *tokens, final, done = events(b"".join(received))
    assert done == "[DONE]"
    assert final["choices"][0]["finish_reason"] == "length"
    assert len([t for t in tokens if t["choices"][0]["delta"].get("content")]) > 0
    await assert_all_is_well(fleet)


async def _read(chunks: AsyncIterator[bytes]) -> list[bytes]:
    return [chunk async for chunk in chunks]


async def test_worker_cut_off_and_back(fleet: Fleet) -> None:
    """Its stream goes on at the other one."""
    staying, leaving = fleet.workers
    async with connect(fleet.url) as one, connect(fleet.url) as other:
        streams = [one, other]  # by turns: one at each worker
        for stream in streams:
            stream.post(CHAT, chat(stream=True, max_tokens=500, stream_options={"include_usage": True}))
            await stream.head()
        chunks = [stream.chunks() for stream in streams]
        received = [[await anext(each)] for each in chunks]
        cut_s = time.monotonic()
        leaving.host.cut()
        rest = asyncio.gather(*map(_read, chunks))
        assert await until_served(fleet.url, 1) == [staying.instance]  # its lease has ended
        assert time.monotonic() - cut_s < LEASE_TTL_S + 8
        answers = await asyncio.gather(*(ask(fleet) for _ in range(8)))
        assert [answer.status for answer in answers] == [200] * 8
        for first, others in zip(received, await asyncio.wait_for(rest, STREAM_S), strict=True):
            *_, usage, done = events(b"".join(first + others))
            assert (done, usage["usage"]["completion_tokens"]) == ("[DONE]", 500)
        leaving.host.heal()
    await assert_all_is_well(fleet)


async def test_etcd_cut_off_and_back(fleet: Fleet) -> None:
    """For longer than leases last, so that it has forgotten everybody afterwards. No request notices."""
    answered = len(fleet.frontend.output)
    fleet.etcd_host.cut()
    async with asyncio.timeout(START_S):
        while "trying again until it works" not in fleet.frontend.output[answered:]:
            assert (await ask(fleet)).status == 200
    lasts_until_s = time.monotonic() + 1.5 * LEASE_TTL_S
    while time.monotonic() < lasts_until_s:
        for worker in fleet.workers:
            assert (await ask(fleet, worker)).status == 200
    assert len(await instances(fleet.url)) == 2
    fleet.etcd_host.heal()
    async with AsyncExitStack() as stack, asyncio.timeout(START_S), asyncio.TaskGroup() as group:
        starting = group.create_task(start_worker(stack, fleet.spare_host, fleet.model, fleet.environ))
        while len(known := await instances(fleet.url)) < 3:
            assert set(known) >= {worker.instance for worker in fleet.workers}
            assert (await ask(fleet)).status == 200
        assert (await starting).instance in known
    await assert_all_is_well(fleet)


async def test_frontend_cut_off_and_back(fleet: Fleet) -> None:
    """From all workers and from etcd, for longer than its lease lasts."""
    answered = len(fleet.frontend.output)
    fleet.frontend_host.cut()
    lasts_until_s = time.monotonic() + 1.5 * LEASE_TTL_S
    async with asyncio.timeout(START_S):
        while "trying again until it works" not in fleet.frontend.output[answered:] or time.monotonic() < lasts_until_s:
            assert len(await instances(fleet.url)) == 2
    fleet.frontend_host.heal()
    await assert_all_is_well(fleet)
