"""How soon the engine frees what nobody waits for any more, whichever way the request was given up."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from dynamo.protocols.generation import PreprocessedRequest, StopConditions
from dynamo.runtime import Client, Context
from dynamo.testing.deployment import Deployment, deployment
from dynamo.tokens import token_array

from .conversations import BLOCK, CHAT, said
from .load import Loads, loads
from .raw_http import connect, encoded
from .served import MOCK, until_served

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.alone]

FREE_S = 0.5
ROUNDS = 3
FAST = ("--block-size", str(BLOCK))
SLOW = (*FAST, "--speedup-ratio", "0.05", "--max-num-batched-tokens", "32", "--max-num-seqs", "8")
PREFILL, DECODE = ("--disaggregation-mode", "prefill"), ("--disaggregation-mode", "decode")


async def idle_after_s(since_s: float, *asked: Loads) -> float:
    """How long after `since_s` no worker has a request or holds a block."""
    async with asyncio.timeout(10):
        for workers in asked:
            await workers.until_idle(10, poll_s=0)
    return time.monotonic() - since_s


def report(what: str, took_s: Sequence[float]) -> None:
    print(f"{what}: blocks free after {1000 * statistics.median(took_s):.1f} ms, at most {1000 * max(took_s):.1f} ms")
    assert max(took_s) < FREE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """A frontend and a slow worker, which can also be called directly."""

    url: str
    loads: Loads
    client: Client


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def slow(tiny_model: Path) -> AsyncIterator[Slow]:
    async with deployment() as started, AsyncExitStack() as stack:
        (_, url), _ = await asyncio.gather(started.frontend(), started.mocker(tiny_model, MOCK, *SLOW))
        await until_served(url, 1)
        runtime = started.runtime()
        stack.push_async_callback(runtime.close)
        client = await runtime.endpoint("dynamo.backend.generate").client()
        await client.wait_for_instances()
        yield Slow(url=url, loads=await stack.enter_async_context(loads(started)), client=client)


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_client_leaves(slow: Slow, how: str) -> None:
    took_s: list[float] = []
    for _ in range(ROUNDS):
        async with connect(slow.url) as connection:
            connection.post(CHAT, encoded(said("hello", max_tokens=5000, stream=True)))
            await connection.head()
            await anext(connection.chunks())
            left_s = time.monotonic()
            if how == "reset":
                connection.reset()
            else:
                connection.writer.close()
            took_s.append(await idle_after_s(left_s, slow.loads))
    report(f"aggregated, {how}", took_s)


@pytest.mark.parametrize("how", ["stop", "kill", "close", "deadline"])
async def test_call_is_given_up(slow: Slow, how: str) -> None:
    took_s: list[float] = []
    for _ in range(ROUNDS):
        context = Context(deadline_s=time.monotonic() + 1 if how == "deadline" else None)
        request = PreprocessedRequest(
            model=MOCK, token_ids=token_array(range(20)), stop_conditions=StopConditions(max_tokens=5000)
        )
        stream = await slow.client.generate(request, annotated=False, context=context)
        await anext(stream)
        left_s = context.deadline_s or time.monotonic()
        if how == "stop":
            context.stop_generating()
        elif how == "kill":
            context.kill()
        elif how == "close":
            await stream.aclose()
        took_s.append(await idle_after_s(left_s, slow.loads))
        await stream.aclose()
    report(f"called directly, {how}", took_s)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
async def test_client_leaves_two_legs(own: Deployment, tiny_model: Path, phase: str) -> None:
    (_, url), *_ = await asyncio.gather(
        own.frontend(),
        own.mocker(tiny_model, MOCK, *(SLOW if phase == "prefill" else FAST), *PREFILL),
        own.mocker(tiny_model, MOCK, *(SLOW if phase == "decode" else FAST), *DECODE),
    )
    await until_served(url, 2)
    took_s: list[float] = []
    async with loads(own) as decode, loads(own, component="prefill") as prefill:
        for number in range(ROUNDS):
            async with connect(url) as connection:
                prompt = f"{number} " + "left alone " * 50
                connection.post(CHAT, encoded(said(prompt, max_tokens=5000, stream=True)))
                await (prefill if phase == "prefill" else decode).until(1, seconds=10)
                if phase == "decode":
                    await connection.head()
                    await anext(connection.chunks())
                left_s = time.monotonic()
                connection.reset()
                took_s.append(await idle_after_s(left_s, decode, prefill))
    report(f"disaggregated, reset in {phase}", took_s)
