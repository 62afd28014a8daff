"""KV routing with a real model: each later turn of a conversation goes to the worker that holds what came before."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from dynamo.runtime.process import READY
from dynamo.testing.deployment import deployment

from .conversation import MODEL, converse
from .served import until_served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="session")]

START_S = 400.0  # two at once, on two cores
CONVERSATIONS = 10
TURNS = 3
AT_ONCE = 2
BLOCK_TOKENS = 32


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def openai(smollm2_dir: Path) -> AsyncIterator[AsyncOpenAI]:
    async with deployment() as started:
        arguments = ["-m", "dynamo.vllm", "--model", str(smollm2_dir), "--served-model-name", MODEL]
        workers = [await started.python(*arguments) for _ in range(2)]
        _, url = await started.frontend("--router-mode", "kv")
        for worker in workers:
            await worker.line(READY, START_S)
        await until_served(url, 2)
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=120) as client:
            yield client


async def test_later_turns_go_to_the_worker_that_has_the_history(
    openai: AsyncOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    room = asyncio.Semaphore(AT_ONCE)
    conversations = await asyncio.gather(*(converse(openai, number, TURNS, room) for number in range(CONVERSATIONS)))
    for turns in conversations:
        assert len({turn.worker_id for turn in turns}) == 1
        for before, turn in itertools.pairwise(turns):
            # All full blocks of the turn before: the template renders the same beginning again.
            assert turn.cached_tokens >= before.prompt_tokens - BLOCK_TOKENS
    assert len({turns[0].worker_id for turns in conversations}) == 2  # and both have some
    with capsys.disabled():
        for number in range(1, TURNS + 1):
            turns = [conversation[number - 1] for conversation in conversations]
            prompt, cached = _mean([t.prompt_tokens for t in turns]), _mean([t.cached_tokens for t in turns])
            ttft_ms = 1000 * _mean([t.ttft_s for t in turns])
            print(f"\nturn {number}: {prompt:.0f} prompt tokens, {cached:.0f} cached, TTFT {ttft_ms:.0f} ms", end="")


def _mean(values: list[int] | list[float]) -> float:
    return sum(values) / len(values)
