"""Workers and frontends that are stopped, as by a debugger or a machine out of memory, and go on later."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from dynamo.testing.deployment import Deployment

from .load import loads
from .raw_http import connect, encoded, post
from .served import instances, until_served
from .test_faults import instance_of

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.alone]

CHAT = "/v1/chat/completions"
SLOW = ("--speedup-ratio", "0.5")
STALL_S = 0.5
HEARTBEAT = ("--heartbeat-interval", "0.1", "--stall-timeout", str(STALL_S))
MARGIN_S = 1.0  # for a busy machine


def chat(**fields: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "ignore_eos": True, "max_tokens": 3}
    return encoded(body | fields)


async def all_answered(url: str, count: int) -> None:
    started_s = time.monotonic()
    answers = await asyncio.gather(*(post(url, CHAT, chat()) for _ in range(count)))
    assert [answer.status for answer in answers] == [200] * count
    assert time.monotonic() - started_s < STALL_S + MARGIN_S


@pytest.mark.parametrize("mode", ["round-robin", "kv"])
async def test_stopped_worker_leaves_the_rotation_and_comes_back(own: Deployment, tiny_model: Path, mode: str) -> None:
    (_, url), stopped, other = await asyncio.gather(
        own.frontend("--router-mode", mode, *HEARTBEAT),
        own.mocker(tiny_model, "m", *SLOW),
        own.mocker(tiny_model, "m", *SLOW),
    )
    await until_served(url, 2)
    async with connect(url) as stream:
        stream.post(CHAT, chat(stream=True, max_tokens=5000, nvext={"backend_instance_id": instance_of(stopped)}))
        await stream.head()
        await anext(stream.chunks())

        stopped.signal(signal.SIGSTOP)
        stopped_s = time.monotonic()
        assert await until_served(url, 1) == [instance_of(other)]
        assert time.monotonic() - stopped_s < STALL_S + 0.2 + MARGIN_S
        await all_answered(url, 8)

        stopped.signal(signal.SIGCONT)
        continued_s = time.monotonic()
        await until_served(url, 2)
        assert time.monotonic() - continued_s < MARGIN_S
        await all_answered(url, 8)


async def test_requests_that_a_stopped_worker_had_are_over_when_it_comes_back(
    own: Deployment, tiny_model: Path
) -> None:
    """Nothing that has waited for it is given to it again, as migration would."""
    (_, url), worker = await asyncio.gather(
        own.frontend(*HEARTBEAT, "--migration-limit", "0"), own.mocker(tiny_model, "m", *SLOW)
    )
    await until_served(url, 1)
    async with connect(url) as stream, loads(own) as asked:
        stream.post(CHAT, chat(stream=True, max_tokens=5000))
        await stream.head()
        await anext(stream.chunks())
        worker.signal(signal.SIGSTOP)
        await _until_unavailable(url)
        worker.signal(signal.SIGCONT)
        await asked.until_idle(MARGIN_S)
        await all_answered(url, 2)


async def _until_unavailable(url: str) -> None:
    async with asyncio.timeout(10):
        while (await post(url, CHAT, chat())).status != 503:
            pass


async def test_worker_that_is_stopped_before_anybody_has_called_it(own: Deployment, tiny_model: Path) -> None:
    """The first who asks it for anything, the model's files perhaps, finds out; and then asks another one."""
    stopped, other = await asyncio.gather(own.mocker(tiny_model, "m", *SLOW), own.mocker(tiny_model, "m", *SLOW))
    stopped.signal(signal.SIGSTOP)
    _, url = await own.frontend(*HEARTBEAT)
    async with asyncio.timeout(10):
        while not await instances(url):  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)
    await all_answered(url, 4)
    assert await until_served(url, 1) == [instance_of(other)]
    await all_answered(url, 4)


async def test_stopped_frontend_frees_what_it_has_asked_for(own: Deployment, tiny_model: Path) -> None:
    (frontend, url), _ = await asyncio.gather(
        own.frontend("--heartbeat-interval", "0.1", "--stall-timeout", "0.2"), own.mocker(tiny_model, "m", *SLOW)
    )
    await until_served(url, 1)
    async with connect(url) as stream, loads(own) as asked:
        stream.post(CHAT, chat(stream=True, max_tokens=800))
        await stream.head()
        await anext(stream.chunks())
        frontend.signal(signal.SIGSTOP)
        await asked.until_idle(4 * 0.2 + MARGIN_S)
        frontend.signal(signal.SIGCONT)
        async for _ in stream.chunks():  # it ends, whether with an error or, from another worker, with all its tokens
            pass
        await all_answered(url, 2)


async def test_stopped_prefill_worker_is_done_without(own: Deployment, tiny_model: Path) -> None:
    (_, url), prefill, _ = await asyncio.gather(
        own.frontend(*HEARTBEAT),
        own.mocker(tiny_model, "m", "--disaggregation-mode", "prefill"),
        own.mocker(tiny_model, "m", "--disaggregation-mode", "decode"),
    )
    await until_served(url, 2)
    await all_answered(url, 2)
    prefill.signal(signal.SIGSTOP)
    await all_answered(url, 4)  # though they went there first
    await until_served(url, 1)
    await all_answered(url, 4)
    prefill.signal(signal.SIGCONT)
    await until_served(url, 2)
    await all_answered(url, 4)
