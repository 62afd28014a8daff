"""More requests than a fleet can serve: most are served well, and the others are told so at once."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from dynamo.testing import within
from dynamo.testing.deployment import Deployment

from .load import loads
from .raw_http import JSON_HEADERS, Response, connect, encoded, get, post, request
from .served import until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"
LONG: dict[str, Any] = {"stream": True, "max_tokens": 30_000}


def chat(**fields: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, "ignore_eos": True}
    return encoded(body | fields)


async def start(own: Deployment, model: Path, frontend: list[str], mocker: list[str]) -> str:
    (_, url), _ = await asyncio.gather(own.frontend(*frontend), own.mocker(model, "m", *mocker))
    await until_served(url, 1)
    return url


async def refusals(url: str) -> dict[str, int]:
    """By reason."""
    prefix = 'dynamo_frontend_refused_requests_total{reason="'
    lines = (await get(url, "/metrics")).body.decode().splitlines()
    pairs = (line.removeprefix(prefix).split('"} ') for line in lines if line.startswith(prefix))
    return {reason: int(float(count)) for reason, count in pairs}


async def test_requests_at_a_time(own: Deployment, tiny_model: Path) -> None:
    flags = ["--max-inflight", "1", "--admission-queue-size", "1", "--admission-queue-timeout", "30"]
    url = await start(own, tiny_model, [*flags, "--overload-status", "529"], ["--speedup-ratio", "1"])
    async with connect(url) as running, connect(url) as waiting:
        running.post(CHAT, chat(**LONG))
        assert (await running.head())[0] == 200
        waiting.post(CHAT, chat())
        await within(_until_queued(url, 1))
        refused = await post(url, CHAT, chat())
        assert (refused.status, refused.error()["code"]) == (529, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await request(url, "POST", CHAT, chat(), JSON_HEADERS | {"x-request-timeout-ms": "1"})).status == 529
        running.reset()
        assert (await waiting.response()).status == 200
    assert await refusals(url) == {"queue_full": 2}


async def test_deadline_of_a_request_that_waits(own: Deployment, tiny_model: Path) -> None:
    flags = ["--max-inflight", "1", "--admission-queue-timeout", "60"]
    url = await start(own, tiny_model, flags, ["--speedup-ratio", "1"])
    async with connect(url) as running, connect(url) as gone:
        running.post(CHAT, chat(**LONG))
        assert (await running.head())[0] == 200
        late = await request(url, "POST", CHAT, chat(), JSON_HEADERS | {"x-request-timeout-ms": "100"})
        assert (late.status, late.error()["code"]) == (504, "deadline_exceeded")
        gone.post(CHAT, chat())
        await within(_until_queued(url, 1))
        gone.reset()
        await within(_until_queued(url, 0))


async def _until_queued(url: str, count: int) -> None:
    line = f'dynamo_frontend_admission_queue_requests{{model="m"}} {count}.0'.encode()
    while line not in (await get(url, "/metrics")).body:
        pass


@pytest.mark.parametrize(
    "flags", [["--active-decode-blocks-threshold", "0.5"], ["--active-prefill-tokens-threshold", "4000"]]
)
async def test_busy_workers(own: Deployment, tiny_model: Path, flags: list[str]) -> None:
    mocker = ["--num-gpu-blocks-override", "100", "--speedup-ratio", "0.2", "--max-num-seqs", "1"]
    url = await start(own, tiny_model, [*flags, "--admission-queue-timeout", "0"], mocker)
    prompt = [{"role": "user", "content": "x" * 5000}]  # a byte is a token
    async with loads(own) as asked:
        async with connect(url) as first, connect(url) as second:
            assert (await post(url, CHAT, chat(max_tokens=1))).status == 200
            for connection in (first, second):  # one runs, and one waits
                connection.post(CHAT, chat(messages=prompt, stream=True, max_tokens=1000))
                await asked.until(1 if connection is first else 2, seconds=10)
            await within(_until_refused(url))
            first.reset()
            second.reset()
        await within(_until_served(url))
    assert set(await refusals(url)) == {"workers_busy"}


async def _until_refused(url: str) -> None:
    """What is let in before the workers have told of their load waits for nothing."""
    short = JSON_HEADERS | {"x-request-timeout-ms": "100"}
    while (await request(url, "POST", CHAT, chat(max_tokens=1), short)).status != 503:
        pass


async def _until_served(url: str) -> None:
    while (await post(url, CHAT, chat(max_tokens=1))).status != 200:
        pass


@pytest.mark.alone
async def test_time_to_first_token(own: Deployment, tiny_model: Path) -> None:
    """A worker that answers one after the other, and far more requests than it can answer in the time."""
    limit_s = 1.5
    mocker = ["--speedup-ratio", "10", "--max-num-seqs", "1"]
    url = await start(own, tiny_model, ["--ttft-limit", str(limit_s)], mocker)
    await post(url, CHAT, chat(max_tokens=1))
    served: list[float] = []

    async def one() -> Response:
        started_s = time.monotonic()
        response = await post(url, CHAT, chat(max_tokens=50))
        if response.status == 200:
            served.append(time.monotonic() - started_s)
        return response

    first = await asyncio.gather(*(one() for _ in range(100)))
    assert {response.status for response in first} == {200}, "nothing is known yet: nobody is refused"
    per_request_s = max(served) / len(served)
    served.clear()
    second = await asyncio.gather(*(one() for _ in range(100)))
    refused = [response for response in second if response.status == 503]
    assert {response.error()["code"] for response in refused} == {"overloaded"}
    assert await refusals(url) == {"ttft": len(refused)}
    assert len(served) * per_request_s == pytest.approx(0.65 * limit_s, rel=0.5)
    assert max(served) < 1.5 * limit_s  # the machine may be busy
