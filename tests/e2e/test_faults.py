"""Processes that die or are told to stop, while clients wait for their answers."""

import asyncio
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from openai import APIError, APIStatusError, AsyncOpenAI

from dynamo.testing import Program
from dynamo.testing.deployment import Deployment

from .load import loads
from .raw_http import JSON_HEADERS, Response, connect, dawdle, encoded, events, get, message, post
from .served import instances, until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"
SLOW = ("--speedup-ratio", "0.5")


def chat(model: str = "m", **fields: Any) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "ignore_eos": True, "max_tokens": 3}
    return encoded(body | fields)


def instance_of(worker: Program) -> int:
    found = re.search(r"backend\.generate as instance ([0-9a-f]+)", worker.output)
    assert found
    return int(found[1], 16)


def on(worker: Program) -> dict[str, Any]:
    return {"backend_instance_id": instance_of(worker)}


@pytest.mark.alone
async def test_worker_killed_in_mid_stream(own: Deployment, tiny_model: Path) -> None:
    (_, url), first, second = await asyncio.gather(
        own.frontend(), own.mocker(tiny_model, "m", *SLOW), own.mocker(tiny_model, "m", *SLOW)
    )
    await until_served(url, 2)
    async with connect(url) as raw, connect(url) as unary, connect(url) as neighbour:
        raw.post(CHAT, chat(stream=True, max_tokens=5000, nvext=on(first)))
        unary.post(CHAT, chat(max_tokens=5000, nvext=on(first)))
        neighbour.post(CHAT, chat(stream=True, max_tokens=200, nvext=on(second)))
        await raw.head()
        await neighbour.head()
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            stream: Any = await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "Hello"}],
                stream=True,
                extra_body={"nvext": on(first), "ignore_eos": True},
            )
            await anext(stream)
            await anext(raw.chunks())

            first.signal(signal.SIGKILL)

            killed_s = time.monotonic()
            with pytest.raises(APIError, match="connection to the worker was lost"):
                async for _ in stream:
                    pass
        *_, last = events(b"".join([chunk async for chunk in raw.chunks()]))  # the end is proper HTTP
        assert last["error"]["code"] == "worker_connection_lost"
        assert set(last["error"]) == {"message", "type", "param", "code"}
        lost = await unary.response()
        assert lost.status == 502
        assert lost.error()["code"] == "worker_connection_lost"
        assert time.monotonic() - killed_s < 1

        answers = await asyncio.gather(*(post(url, CHAT, chat()) for _ in range(6)))
        assert [answer.status for answer in answers] == [200] * 6  # whether or not the death is known yet
        *_, done = events(b"".join([chunk async for chunk in neighbour.chunks()]))
        assert done == "[DONE]"
    assert await until_served(url, 1) == [instance_of(second)]


@pytest.mark.alone
async def test_all_workers_killed(own: Deployment, tiny_model: Path) -> None:
    (frontend, url), first, second = await asyncio.gather(
        own.frontend("--migration-wait", "0"), own.mocker(tiny_model, "m"), own.mocker(tiny_model, "m")
    )
    await until_served(url, 2)
    assert (await post(url, CHAT, chat())).status == 200
    for worker in (first, second):
        worker.signal(signal.SIGKILL)
        await worker.exit_code()

    await _assert_unavailable(url)  # perhaps before the frontend has seen it
    await until_served(url, 0)
    for _ in range(3):
        await _assert_unavailable(url)
    unknown = await post(url, CHAT, chat("unknown"))
    assert (unknown.status, unknown.error()["code"]) == (404, "model_not_found")
    assert (await get(url, "/health")).status == 503
    assert (await get(url, "/v1/models")).json()["data"] == []

    await own.mocker(tiny_model, "m")
    await until_served(url, 1)
    assert (await post(url, CHAT, chat())).status == 200
    assert "Traceback" not in frontend.output


async def _assert_unavailable(url: str) -> None:
    started_s = time.monotonic()
    for stream in (False, True):
        response = await post(url, CHAT, chat(stream=stream))
        assert response.status == 503
        assert int(response.headers["retry-after"]) >= 1
        assert response.error()["type"] == "server_error"
    assert time.monotonic() - started_s < 1


async def test_worker_told_to_stop_finishes_its_streams(own: Deployment, tiny_model: Path) -> None:
    (_, url), leaving, staying = await asyncio.gather(
        own.frontend(), own.mocker(tiny_model, "m", *SLOW), own.mocker(tiny_model, "m", *SLOW)
    )
    await until_served(url, 2)
    async with connect(url) as stream:
        stream.post(CHAT, chat(stream=True, max_tokens=120, nvext=on(leaving)))
        await stream.head()
        await anext(stream.chunks())

        leaving.signal(signal.SIGTERM)

        assert await until_served(url, 1) == [instance_of(staying)]
        answers = await asyncio.gather(*(post(url, CHAT, chat()) for _ in range(4)))
        assert [answer.status for answer in answers] == [200] * 4
        refused = await post(url, CHAT, chat(nvext=on(leaving)))
        assert refused.status == 400
        payloads = events(b"".join([chunk async for chunk in stream.chunks()]))
    assert payloads[-1] == "[DONE]"
    assert payloads[-2]["choices"][0]["finish_reason"] == "length"
    assert await leaving.exit_code() == 0


async def test_last_worker_told_to_stop(own: Deployment, tiny_model: Path) -> None:
    (_, url), leaving = await asyncio.gather(own.frontend(), own.mocker(tiny_model, "m", *SLOW))
    await until_served(url, 1)
    async with connect(url) as stream:
        stream.post(CHAT, chat(stream=True, max_tokens=120))
        await stream.head()
        leaving.signal(signal.SIGTERM)
        await _assert_unavailable_soon(url)
        assert events(b"".join([chunk async for chunk in stream.chunks()]))[-1] == "[DONE]"
    assert await leaving.exit_code() == 0
    assert not [entry for entry in own.discovery.iterdir() if "backend" in entry.name]


async def _assert_unavailable_soon(url: str) -> None:
    """What comes before the signal is handled may still be answered."""
    async with asyncio.timeout(10):
        while (await post(url, CHAT, chat())).status == 200:
            pass
    await _assert_unavailable(url)


async def test_worker_that_does_not_finish_in_time(own: Deployment, tiny_model: Path) -> None:
    (_, url), leaving = await asyncio.gather(
        own.frontend("--migration-wait", "0.1"), own.mocker(tiny_model, "m", *SLOW, "--shutdown-timeout", "0.3")
    )
    await until_served(url, 1)
    async with connect(url) as stream:
        stream.post(CHAT, chat(stream=True, max_tokens=5000))
        await stream.head()
        leaving.signal(signal.SIGTERM)
        *_, last = events(b"".join([chunk async for chunk in stream.chunks()]))
        assert set(last) == {"error"}
    assert await leaving.exit_code() == 0


async def test_frontend_told_to_stop_finishes_its_streams(own: Deployment, tiny_model: Path) -> None:
    (frontend, url), _ = await asyncio.gather(own.frontend(), own.mocker(tiny_model, "m", *SLOW))
    await until_served(url, 1)
    async with connect(url) as stream, connect(url) as unary, connect(url) as idle:
        idle.send(b"GET /live HTTP/1.1\r\n\r\n")
        await idle.response()
        stream.post(CHAT, chat(stream=True, max_tokens=100))
        unary.post(CHAT, chat(max_tokens=100))
        await stream.head()
        await anext(stream.chunks())

        frontend.signal(signal.SIGTERM)

        assert await idle.is_closed()
        assert events(b"".join([chunk async for chunk in stream.chunks()]))[-1] == "[DONE]"
        answer = await unary.response()
        assert answer.json()["usage"]["completion_tokens"] == 100
    assert await frontend.exit_code() == 0
    with pytest.raises(ConnectionRefusedError):
        await get(url, "/live")
    assert "Traceback" not in frontend.output


async def test_frontend_that_may_not_wait(own: Deployment, tiny_model: Path) -> None:
    (frontend, url), _ = await asyncio.gather(
        own.frontend("--shutdown-timeout", "1"), own.mocker(tiny_model, "m", *SLOW)
    )
    await until_served(url, 1)
    async with connect(url) as stream, connect(url) as unary:
        stream.post(CHAT, chat(stream=True, max_tokens=5000))
        unary.post(CHAT, chat(max_tokens=5000))
        await stream.head()
        frontend.signal(signal.SIGTERM)
        *_, last = events(b"".join([chunk async for chunk in stream.chunks()]))
        assert last["error"]["code"] == "service_unavailable"
        assert (await unary.response()).status == 503
    assert await frontend.exit_code() == 0
    assert "Traceback" not in frontend.output


async def test_frontend_that_may_not_wait_for_a_body(own: Deployment) -> None:
    frontend, url = await own.frontend("--shutdown-timeout", "1")
    async with connect(url) as unfinished:
        unfinished.send(message("POST", CHAT, chat(), JSON_HEADERS | {"expect": "100-continue"})[:-1])
        assert (await unfinished.head())[0] == 100  # it is being waited for
        frontend.signal(signal.SIGTERM)
        response = await unfinished.response()
        assert (response.status, response.error()["code"]) == (503, "service_unavailable")
    assert await frontend.exit_code() == 0
    assert "Traceback" not in frontend.output


async def test_frontend_does_not_wait_for_a_client_that_does_not_read(own: Deployment, tiny_model: Path) -> None:
    (frontend, url), _ = await asyncio.gather(
        own.frontend("--shutdown-timeout", "1"), own.mocker(tiny_model, "m", "--speedup-ratio", "100")
    )
    await until_served(url, 1)
    async with dawdle(url) as pipelining, loads(own) as asked:
        pipelining.post(CHAT, chat(stream=True, n=4, max_tokens=20_000))
        pipelining.post(CHAT, chat())  # its answer cannot go out: the stream is not being read
        await pipelining.head()
        await asked.until(0, seconds=30)  # all that it does not take fills every buffer on the way
        frontend.signal(signal.SIGTERM)
        assert await frontend.exit_code() == 0
    assert "Traceback" not in frontend.output


async def test_second_signal_ends_at_once(own: Deployment, tiny_model: Path) -> None:
    (frontend, url), worker = await asyncio.gather(own.frontend(), own.mocker(tiny_model, "m", *SLOW))
    await until_served(url, 1)
    async with connect(url) as stream:
        stream.post(CHAT, chat(stream=True, max_tokens=5000))
        await stream.head()
        for process in (frontend, worker):
            process.signal(signal.SIGINT)
            await process.line("shutting down")
        for process in (frontend, worker):
            process.signal(signal.SIGINT)
        for process in (frontend, worker):
            assert await process.exit_code(2) == 128 + signal.SIGINT


async def test_two_frontends(own: Deployment, tiny_model: Path) -> None:
    (first, one), (_, two), _ = await asyncio.gather(
        own.frontend(), own.frontend(), own.mocker(tiny_model, "m", "--num-workers", "2")
    )
    assert sorted(await until_served(one, 2)) == sorted(await until_served(two, 2))

    async def ask(url: str) -> Response:
        return await post(url, CHAT, chat(max_tokens=8, seed=1))

    answers = await asyncio.gather(*(ask(url) for url in (one, two) * 4))
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1
    first.signal(signal.SIGKILL)
    await first.exit_code()
    assert (await ask(two)).status == 200
    assert len(await instances(two)) == 2


async def test_error_of_a_client_library(own: Deployment) -> None:
    _, url = await own.frontend()
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(APIStatusError) as failure:
            await client.completions.create(model="m", prompt="Hello")
    assert failure.value.status_code == 503
    assert failure.value.response.headers["retry-after"] == "1"
