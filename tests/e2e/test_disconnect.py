"""Clients that leave give their place in the engine back; clients that dawdle hold up nobody else."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from dynamo.testing import Program
from dynamo.testing.deployment import deployment

from .load import Loads, loads
from .raw_http import JSON_HEADERS, Connection, Response, connect, dawdle, encoded, events, message, post
from .served import until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"
SLOT_FREE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two models behind one frontend: a slow one with four places, and a fast one."""

    frontend: Program
    url: str
    loads: Loads


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(tiny_model: Path) -> AsyncIterator[Pair]:
    async with deployment() as started:
        (frontend, url), *_ = await asyncio.gather(
            started.frontend(),
            started.mocker(tiny_model, "slow", "--speedup-ratio", "0.2", "--max-num-seqs", "4"),
            started.mocker(tiny_model, "fast", "--speedup-ratio", "100"),
        )
        await until_served(url, 2)
        async with loads(started) as asked:
            yield Pair(frontend=frontend, url=url, loads=asked)


def chat(**fields: Any) -> bytes:
    body = {"model": "slow", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5000, "ignore_eos": True}
    return encoded(body | fields)


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(chat(), id="unary"),
        pytest.param(chat(n=3), id="unary, three choices"),
        pytest.param(chat(messages=[{"role": "user", "content": "Hello " * 8000}]), id="during prefill"),
        pytest.param(chat(messages=[{"role": "user", "content": "Hello " * 8000}], stream=True), id="before a token"),
    ],
)
async def test_client_leaves_before_it_has_got_anything(pair: Pair, body: bytes, how: str) -> None:
    choices = json.loads(body).get("n", 1)
    async with connect(pair.url) as connection:
        connection.post(CHAT, body)
        await pair.loads.until(choices, seconds=10)
        await _leave(connection, how)
        await pair.loads.until(0, seconds=SLOT_FREE_S)


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("choices", [1, 4])
async def test_client_leaves_in_mid_stream(pair: Pair, choices: int, how: str) -> None:
    async with connect(pair.url) as connection:
        connection.post(CHAT, chat(stream=True, n=choices))
        await connection.head()
        for _ in range(8):
            await anext(connection.chunks())
        assert await pair.loads.requests() == choices
        await _leave(connection, how)
        await pair.loads.until(0, seconds=SLOT_FREE_S)


async def test_client_leaves_the_queue(pair: Pair) -> None:
    async with connect(pair.url) as running, connect(pair.url) as waiting:
        running.post(CHAT, chat(n=4))
        await pair.loads.until(4, seconds=10)
        waiting.post(CHAT, chat(n=2))
        await pair.loads.until(6, seconds=10)
        waiting.reset()
        await pair.loads.until(4, seconds=SLOT_FREE_S)
        running.reset()
        await pair.loads.until(0, seconds=SLOT_FREE_S)


@pytest.mark.parametrize("stream", [False, True])
async def test_client_with_pipelined_requests_leaves(pair: Pair, stream: bool) -> None:
    async with connect(pair.url) as connection:
        for _ in range(3):
            connection.post(CHAT, chat(stream=stream))
        await pair.loads.until(1, seconds=10)  # one after the other
        connection.reset()
        await pair.loads.until(0, seconds=SLOT_FREE_S)
    assert "Traceback" not in pair.frontend.output


async def test_client_leaves_in_the_middle_of_its_request(pair: Pair) -> None:
    data = message("POST", CHAT, chat(), JSON_HEADERS)
    for length in (10, len(data) - 1):
        async with connect(pair.url) as connection:
            connection.send(data[:length])
            await connection.writer.drain()
            connection.reset()
    assert await pair.loads.requests() == 0
    assert (await post(pair.url, CHAT, chat(max_tokens=1))).status == 200


async def test_many_clients_leave_at_once(pair: Pair) -> None:
    async def come_and_go() -> None:
        async with connect(pair.url) as connection:
            connection.post(CHAT, chat(stream=True))
            await connection.writer.drain()
            connection.reset()

    await asyncio.gather(*(come_and_go() for _ in range(50)))
    await pair.loads.until(0, seconds=5)
    answer = await post(pair.url, CHAT, chat(max_tokens=2))
    assert answer.json()["usage"]["completion_tokens"] == 2


@pytest.mark.alone
async def test_slow_reader_holds_up_nobody_else(pair: Pair) -> None:
    long = {"model": "fast", "max_tokens": 20_000, "seed": 7}
    async with dawdle(pair.url) as dawdler:
        dawdler.post(CHAT, chat(**long, stream=True, stream_options={"include_usage": True}))
        await dawdler.head()  # and then it reads no more for a while

        started_s = time.monotonic()
        neighbours = [post(pair.url, CHAT, chat(model="fast", max_tokens=500, stream=True)) for _ in range(3)]
        for response in await asyncio.gather(*neighbours):
            assert events(response.body)[-1] == "[DONE]"
        assert time.monotonic() - started_s < 5
        await pair.loads.until(0, seconds=10)  # the engine doesn't wait for readers either

        got = [event for event in events(b"".join([chunk async for chunk in dawdler.chunks()])) if event != "[DONE]"]
    assert got[-1]["usage"]["completion_tokens"] == 20_000
    whole: Response = await post(pair.url, CHAT, chat(**long))
    text = "".join(choice["delta"].get("content", "") for event in got for choice in event["choices"])
    assert text == whole.json()["choices"][0]["message"]["content"]


async def _leave(connection: Connection, how: str) -> None:
    if how == "reset":
        connection.reset()
    else:
        connection.writer.close()
        await connection.writer.wait_closed()
