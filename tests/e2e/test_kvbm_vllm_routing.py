"""KV routing with a real model whose blocks the block manager keeps: routers hear of them from the worker."""

from pathlib import Path

import pytest
from openai import AsyncOpenAI

from dynamo.runtime.process import READY
from dynamo.testing.deployment import Deployment

from .conversation import MODEL, ask, question
from .served import until_served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="session")]

START_S = 240.0
BLOCK_TOKENS = 32
DEVICE_BYTES = 18_000_000  # 24 blocks: two of the prompts


async def test_router_knows_what_the_block_manager_keeps(own: Deployment, smollm2_dir: Path, tmp_path: Path) -> None:
    socket = str(tmp_path / "kvbm.sock")
    keeper = await own.python("-m", "dynamo.kvbm", "--kvbm-socket", socket)
    await keeper.line(READY)
    worker = await own.python(
        *("-m", "dynamo.vllm", "--model", str(smollm2_dir), "--served-model-name", MODEL, "--max-model-len", "512"),
        *("--kv-cache-memory-bytes", str(DEVICE_BYTES), "--kvbm-host-gb", "0.2"),
        *("--kvbm-socket", socket, "--no-kvbm-start"),
    )
    _, url = await own.frontend("--router-mode", "kv")
    await worker.line(READY, START_S)
    await until_served(url, 1)
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=120) as openai:
        first, *_ = [await ask(openai, [question(number)]) for number in range(3)]
        again = await ask(openai, [question(0)])

    assert again.host_blocks == again.overlap_blocks == first.prompt_tokens // BLOCK_TOKENS  # others have evicted it
    assert again.cached_tokens == again.host_blocks * BLOCK_TOKENS  # the engine finds there what the router expects
    assert again.answer == first.answer
