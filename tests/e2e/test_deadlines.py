"""Requests that may not take longer."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from dynamo.testing.deployment import Deployment, deployment

from .load import Loads, loads
from .raw_http import JSON_HEADERS, Response, connect, encoded, request
from .served import until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"
PROMPT = [{"role": "user", "content": "Hello " * 8000}]  # takes the slow model seconds to prefill


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """Two frontends of a slow worker: one says how long requests may take, one does not."""

    url: str
    limited_url: str  # 1.5 s
    loads: Loads


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def slow(tiny_model: Path) -> AsyncIterator[Slow]:
    async with deployment() as started:
        (_, url), (_, limited_url), *_ = await asyncio.gather(
            started.frontend(),
            started.frontend("--request-timeout", "1.5"),
            started.mocker(tiny_model, "slow", "--speedup-ratio", "0.5"),
        )
        await until_served(url, 1)
        await until_served(limited_url, 1)
        async with loads(started) as asked:
            yield Slow(url=url, limited_url=limited_url, loads=asked)


def chat(**fields: Any) -> bytes:
    body = {"model": "slow", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5000, "ignore_eos": True}
    return encoded(body | fields)


async def send(url: str, timeout_ms: str | None, **fields: Any) -> Response:
    headers = JSON_HEADERS if timeout_ms is None else JSON_HEADERS | {"x-request-timeout-ms": timeout_ms}
    return await request(url, "POST", CHAT, chat(**fields), headers)


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"messages": PROMPT}, {"messages": PROMPT, "stream": True}])
async def test_before_the_first_token(slow: Slow, fields: dict[str, Any]) -> None:
    response = await send(slow.url, "300", **fields)
    assert response.status == 504
    assert response.error()["code"] == "deadline_exceeded"
    await slow.loads.until_idle(5)


async def test_in_mid_stream(slow: Slow) -> None:
    async with connect(slow.url) as connection:
        connection.post(CHAT, chat(stream=True), JSON_HEADERS | {"x-request-timeout-ms": "1000"})
        assert (await connection.head())[0] == 200
        *_, last = [chunk async for chunk in connection.chunks()]
        assert b"[DONE]" not in last
        error = json.loads(last.split(b"data: ")[-1])["error"]
        assert error["code"] == "deadline_exceeded"
        await slow.loads.until_idle(5)
        connection.post(CHAT, chat(max_tokens=1))  # the connection is as good as before
        assert (await connection.response()).status == 200


async def test_the_servers_own_limit(slow: Slow) -> None:
    for timeout_ms in (None, "1000000"):
        assert (await send(slow.limited_url, timeout_ms)).status == 504
    await slow.loads.until_idle(5)


async def test_in_time(slow: Slow) -> None:
    assert (await send(slow.limited_url, "1000000000", max_tokens=1)).status == 200
    assert (await send(slow.url, "60000", max_tokens=1)).status == 200


@pytest.mark.parametrize("router_mode", ["round-robin", "kv"])
async def test_both_legs(own: Deployment, tiny_model: Path, router_mode: str) -> None:
    """Where one worker prefills and another decodes, both are free again."""
    flags = ["--speedup-ratio", "0.5", "--block-size", "16"]
    (_, url), *_ = await asyncio.gather(
        own.frontend("--router-mode", router_mode),
        own.mocker(tiny_model, "slow", "--disaggregation-mode", "prefill", *flags),
        own.mocker(tiny_model, "slow", "--disaggregation-mode", "decode", *flags),
    )
    await until_served(url, 2)
    async with loads(own, component="prefill") as prefill, loads(own) as decode:
        assert (await send(url, "300", messages=PROMPT)).status == 504  # in the first leg
        await prefill.until_idle(5)
        async with connect(url) as connection:
            connection.post(CHAT, chat(stream=True), JSON_HEADERS | {"x-request-timeout-ms": "1500"})
            assert (await connection.head())[0] == 200
            await anext(connection.chunks())
            assert await decode.requests() == 1
            *_, last = [chunk async for chunk in connection.chunks()]
            assert b"deadline_exceeded" in last
        await asyncio.gather(prefill.until_idle(5), decode.until_idle(5))


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "1e3", "300ms", "x", "²", "1000000001", "9" * 5000, "0x10"])
async def test_wrong_value(slow: Slow, value: str) -> None:
    response = await send(slow.url, value.encode().decode("latin-1"))
    assert response.status == 400
    assert response.error()["param"] == "x-request-timeout-ms"


async def test_body_that_takes_too_long(slow: Slow) -> None:
    async with connect(slow.url) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\nx-request-timeout-ms: 200\r\n\r\n{{"
        connection.send(head.encode())
        assert (await connection.response()).status == 504
