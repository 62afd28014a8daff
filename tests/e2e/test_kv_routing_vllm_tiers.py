"""KV routing with a real model that keeps in host memory what its device's cache has no room for."""

import json
import os
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
BLOCKS_PER_CHUNK = 2  # what is offloaded at once
DEVICE_BYTES = 18_000_000  # 24 blocks: two of the prompts
OFFLOADING = {
    "kv_connector": "OffloadingConnector",
    "kv_role": "kv_both",
    "kv_connector_extra_config": {
        "cpu_bytes_to_use": 1 << 26,
        "blocks_per_chunk": BLOCKS_PER_CHUNK,
        "spec_name": "HostOffloadingSpec",
        "spec_module_path": "host_offloading",
    },
}


async def test_router_knows_what_lies_in_host_memory(own: Deployment, smollm2_dir: Path) -> None:
    worker = await own.python(
        *("-m", "dynamo.vllm", "--model", str(smollm2_dir), "--served-model-name", MODEL, "--max-model-len", "512"),
        *("--kv-cache-memory-bytes", str(DEVICE_BYTES), "--kv-transfer-config", json.dumps(OFFLOADING)),
        environ={"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])},
    )
    _, url = await own.frontend("--router-mode", "kv")
    await worker.line(READY, START_S)
    await until_served(url, 1)
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=120) as openai:
        first, *_ = [await ask(openai, [question(number)]) for number in range(3)]
        again = await ask(openai, [question(0)])

    whole_chunks = first.prompt_tokens // (BLOCK_TOKENS * BLOCKS_PER_CHUNK)
    assert again.host_blocks == again.overlap_blocks == whole_chunks * BLOCKS_PER_CHUNK  # the others have evicted it
    assert again.cached_tokens == again.host_blocks * BLOCK_TOKENS  # the engine finds there what the router expects
    assert again.answer == first.answer
