"""Workers that are told to end while requests keep coming."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.testing import program, within
from dynamo.testing.deployment import Deployment

from .raw_http import encoded, events, post
from .served import until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"
TOKENS = 20

# Says when each request has come, on the clock that all processes of a machine share.
WORKER = """
import asyncio, time
from dynamo.runtime import DistributedRuntime, dynamo_worker
from dynamo.telemetry import logging

async def handler(request):
    print("request", time.monotonic(), flush=True)
    yield 1

@dynamo_worker()
async def worker(runtime: DistributedRuntime):
    await runtime.endpoint("test.backend.generate").serve_endpoint(handler)

logging.configure()
asyncio.run(worker())
"""


class Load:
    """Keeps asking, and remembers what went wrong."""

    def __init__(self) -> None:
        self.answers = 0
        self.failures: list[str] = []

    async def ask(self, url: str) -> None:
        while True:
            body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": TOKENS}
            response = await post(url, CHAT, encoded(body | {"ignore_eos": True, "stream": True}))
            self.answers += 1
            if response.status != 200:
                self.failures.append(f"{response.status}: {response.body!r}")
            elif (payloads := events(response.body))[-1] != "[DONE]":
                self.failures.append(str(payloads[-1]))


@asynccontextmanager
async def load(url: str, clients: int) -> AsyncIterator[Load]:
    asking = Load()
    tasks = [asyncio.create_task(asking.ask(url)) for _ in range(clients)]
    try:
        yield asking
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_all_workers_are_replaced_under_load(own: Deployment, tiny_model: Path) -> None:
    (_, url), *old = await asyncio.gather(
        own.frontend("--router-mode", "kv"), own.mocker(tiny_model, "m"), own.mocker(tiny_model, "m")
    )
    await until_served(url, 2)
    async with load(url, 8) as asking:
        for worker in old:
            await own.mocker(tiny_model, "m")
            await until_served(url, 3)
            before = asking.answers
            worker.signal(signal.SIGTERM)
            assert await worker.exit_code() == 0
            await until_served(url, 2)
            async with asyncio.timeout(10):
                while asking.answers < before + 16:  # noqa: ASYNC110 - all clients have gone on
                    await asyncio.sleep(0.02)
        assert asking.failures == []


@pytest.mark.alone
async def test_no_request_comes_long_after_the_signal(tmp_path: Path) -> None:
    discovery = str(tmp_path)
    runtime = DistributedRuntime(config=RuntimeConfig(file_kv=discovery))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(runtime.close)
        environ = {"DYN_FILE_KV": discovery}
        leaving, _ = [await stack.enter_async_context(program(["-c", WORKER], environ)) for _ in range(2)]
        client = await runtime.endpoint("test.backend.generate").client()
        while len(client.instance_ids()) < 2:
            await within(client.wait_for_change())
        answered = 0

        async def ask() -> None:
            nonlocal answered
            while True:
                async for _ in await client.generate(None, annotated=False):
                    answered += 1

        asking = [asyncio.create_task(ask()) for _ in range(8)]
        await leaving.line("request")
        signal_s = time.monotonic()
        leaving.signal(signal.SIGTERM)
        assert await leaving.exit_code() == 0
        at_exit = answered
        async with asyncio.timeout(10):
            while answered < at_exit + 100:  # noqa: ASYNC110 - the other one has them all
                await asyncio.sleep(0.01)
        assert not any(task.done() for task in asking)  # no call has failed
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
    last_s = max(_request_times(leaving.output)) - signal_s
    print(f"last request {1000 * last_s:.1f} ms after SIGTERM")
    assert last_s < 0.5


def _request_times(output: str) -> list[float]:
    return [float(line.split()[1]) for line in output.splitlines() if line.startswith("request ")]
