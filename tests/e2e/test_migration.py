"""Workers that are lost in mid-stream: clients get every token, and see nothing of it."""

import asyncio
import itertools
import re
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dynamo.testing import Program, within
from dynamo.testing.deployment import Deployment

from .raw_http import connect, encoded, events, get
from .served import until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

COMPLETIONS = "/v1/completions"
STREAMS = 32
TOKENS = 150
END_S = 60.0


class Stream:
    """One completion, read by a task of its own."""

    def __init__(self, url: str, number: int) -> None:
        self.begun = asyncio.Event()
        self._body = encoded(
            {
                "model": "m",
                "prompt": f"{number} " * (number + 1),
                "stop": ["never said"],
                "max_tokens": TOKENS + number,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
        self.task = asyncio.create_task(self._read(url))

    async def _read(self, url: str) -> list[Any]:
        data = b""
        async with connect(url) as raw:
            raw.post(COMPLETIONS, self._body)
            assert (await raw.head())[0] == 200
            async for chunk in raw.chunks():
                data += chunk
                self.begun.set()
        return events(data)


@asynccontextmanager
async def streams(url: str, count: int = STREAMS, *, begun: int | None = None) -> AsyncIterator[list[Stream]]:
    """`begun` of them have, all by default."""
    started = [Stream(url, number) for number in range(count)]
    try:
        waiting = asyncio.as_completed([stream.begun.wait() for stream in started])
        for first in itertools.islice(waiting, begun):
            await within(first)
        yield started
    finally:
        for stream in started:
            stream.task.cancel()
        await asyncio.wait([stream.task for stream in started])


async def answers(started: Sequence[Stream]) -> list[tuple[str, str | None, Any]]:
    """Of each the text, why it ended, and the usage without what was cached; how it was cut up is left open."""
    return [_answer(payloads) for payloads in await within(asyncio.gather(*(s.task for s in started)), END_S)]


def _answer(payloads: list[Any]) -> tuple[str, str | None, Any]:
    assert payloads[-1] == "[DONE]", payloads[-1]
    usage = payloads[-2]["usage"]
    choices = [choice for payload in payloads[:-1] for choice in payload["choices"]]
    finishes = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    assert len(finishes) == 1
    return (
        "".join(choice["text"] for choice in choices),
        finishes[0],
        usage["prompt_tokens"] + usage["completion_tokens"],
    )


async def undisturbed(url: str, count: int = STREAMS) -> list[tuple[str, str | None, Any]]:
    async with streams(url, count) as started:
        return await answers(started)


async def moves(url: str) -> dict[str, float]:
    """How many requests have moved, by type."""
    text = (await get(url, "/metrics")).body.decode()
    found = re.findall(r'model_migration_total\{migration_type="(\w+)",model="m"\} (\S+)', text)
    return {kind: float(count) for kind, count in found}


@pytest.mark.parametrize("mode", ["least-loaded", "kv"])
async def test_worker_killed(own: Deployment, tiny_model: Path, mode: str) -> None:
    (frontend, url), first, _ = await asyncio.gather(
        own.frontend("--router-mode", mode), own.mocker(tiny_model, "m"), own.mocker(tiny_model, "m")
    )
    await until_served(url, 2)
    expected = await undisturbed(url)
    async with streams(url) as started:
        first.signal(signal.SIGKILL)
        assert await answers(started) == expected
    moved = await moves(url)
    assert moved.keys() == {"ongoing_request"}  # all had begun
    assert 0 < moved["ongoing_request"] < STREAMS
    assert "Traceback" not in frontend.output


async def test_requests_that_wait_for_their_first_token_too(own: Deployment, tiny_model: Path) -> None:
    def start() -> Any:
        return own.mocker(tiny_model, "m", "--max-num-seqs", "2", "--speedup-ratio", "4")

    (_, url), first, second = await asyncio.gather(own.frontend(), start(), start())
    await until_served(url, 2)
    async with streams(url, 12, begun=12) as started:
        expected = await answers(started)
    async with streams(url, 12, begun=4) as started:
        first.signal(signal.SIGKILL)
        assert await answers(started) == expected
    assert (await moves(url))["new_request"] > 0
    assert "Traceback" not in second.output


async def test_only_worker_killed_and_replaced(own: Deployment, tiny_model: Path) -> None:
    (_, url), first = await asyncio.gather(own.frontend("--migration-wait", "60"), own.mocker(tiny_model, "m"))
    await until_served(url, 1)
    expected = await undisturbed(url, 8)
    async with streams(url, 8) as started:
        first.signal(signal.SIGKILL)
        await until_served(url, 0)
        await own.mocker(tiny_model, "m")
        assert await answers(started) == expected


async def test_worker_told_to_stop_that_may_not_wait(own: Deployment, tiny_model: Path) -> None:
    (_, url), leaving, _ = await asyncio.gather(
        own.frontend(), own.mocker(tiny_model, "m", "--shutdown-timeout", "0.2"), own.mocker(tiny_model, "m")
    )
    await until_served(url, 2)
    expected = await undisturbed(url)
    async with streams(url) as started:
        leaving.signal(signal.SIGTERM)
        assert await answers(started) == expected
    assert await leaving.exit_code() == 0


async def test_worker_that_hangs(own: Deployment, tiny_model: Path) -> None:
    (_, url), hanging, _ = await asyncio.gather(
        own.frontend("--inter-token-timeout", "0.5"), own.mocker(tiny_model, "m"), own.mocker(tiny_model, "m")
    )
    await until_served(url, 2)
    expected = await undisturbed(url, 8)
    async with streams(url, 8) as started:
        hanging.signal(signal.SIGSTOP)
        assert await answers(started) == expected


async def test_everybody_was_held_up(own: Deployment, tiny_model: Path) -> None:
    """As on a machine that is paused: nobody is to blame for having said nothing."""
    (frontend, url), worker = await asyncio.gather(
        own.frontend("--inter-token-timeout", "1"), own.mocker(tiny_model, "m")
    )
    await until_served(url, 1)
    async with streams(url, 8) as started:
        for program in (worker, frontend):
            program.signal(signal.SIGSTOP)
        await asyncio.sleep(1.5)  # which is what holds them up
        for program in (frontend, worker):
            program.signal(signal.SIGCONT)
        await answers(started)
    assert await moves(url) == {}


@pytest.mark.parametrize("lost", ["prefill", "decode"])
async def test_disaggregated(own: Deployment, tiny_model: Path, lost: str) -> None:
    def start(role: str) -> Any:
        return own.mocker(tiny_model, "m", "--disaggregation-mode", role, "--block-size", "16")

    (_, url), prefill, decode, _ = await asyncio.gather(
        own.frontend(), start("prefill"), start("decode"), start("decode")
    )
    await until_served(url, 3)
    expected = await undisturbed(url)
    async with streams(url) as started:
        killed: Program = prefill if lost == "prefill" else decode
        killed.signal(signal.SIGKILL)
        assert await answers(started) == expected
