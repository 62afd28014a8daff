"""KV routing with a real model on two data-parallel ranks of one vLLM: each is a worker of its own to the router."""

import asyncio
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from dynamo.runtime.process import READY
from dynamo.testing.deployment import Deployment

from .conversation import MODEL, converse
from .load import loads
from .raw_http import get
from .served import until_served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="session")]

START_S = 400.0  # two engines at once, on two cores
BLOCK_TOKENS = 32


async def test_later_turns_go_to_the_rank_that_has_the_history(own: Deployment, smollm2_dir: Path) -> None:
    worker = await own.python(
        *("-m", "dynamo.vllm", "--model", str(smollm2_dir), "--served-model-name", MODEL, "--data-parallel-size", "2"),
        environ={"DYN_SYSTEM_PORT": "0"},
    )
    _, url = await own.frontend("--router-mode", "kv")
    await worker.line(READY, START_S)
    (worker_id,) = await until_served(url, 1)
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=120) as openai, loads(own) as asked:
        room = asyncio.Semaphore(2)
        conversations = await asyncio.gather(*(converse(openai, number, 2, room) for number in range(2)))

        ranks = [turns[0].dp_rank for turns in conversations]
        assert sorted(ranks) == [0, 1]  # what one of them is busy with, the other is not
        generated = {0: 0, 1: 0}
        for rank, (first, second) in zip(ranks, conversations, strict=True):
            assert {(turn.worker_id, turn.dp_rank) for turn in (first, second)} == {(worker_id, rank)}
            whole_blocks = first.prompt_tokens // BLOCK_TOKENS
            assert (first.overlap_blocks, first.cached_tokens) == (0, 0)
            # The router has heard from that rank's events what its cache holds, and the request has found it there.
            assert second.overlap_blocks >= whole_blocks
            assert second.cached_tokens >= whole_blocks * BLOCK_TOKENS
            generated[rank] += first.generated_tokens + second.generated_tokens
        await asked.until_generated(generated, 5)  # by the ranks that the router says
    system = (await worker.line("system server on")).split()[-1]
    metrics = (await get(system, "/metrics")).body.decode()
    for rank in ranks:
        assert f'dynamo_worker_kv_events_messages_total{{dp_rank="{rank}"}}' in metrics
        assert f'dynamo_worker_kv_events_gaps_total{{dp_rank="{rank}"}} 0.0' in metrics
