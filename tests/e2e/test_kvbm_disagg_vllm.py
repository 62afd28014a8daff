"""Disaggregated serving with a block manager below: NIXL's connector and ours in one vLLM, by `dynamo serve`.

In float32, as in test_disagg_vllm.py: bfloat16 rounds by which part of a prompt was computed at once.
"""

import asyncio
import re
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families

from dynamo.kvbm.admin import ask as ask_service
from dynamo.protocols.kvbm import Figures, Inspect, StorageTier
from dynamo.testing.deployment import Deployment
from dynamo.testing.program import Program
from dynamo.transfer import nixl_library

from .raw_http import get

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(400),
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(not nixl_library.is_installed(), reason=f"NIXL is not installed: {nixl_library.INSTALL}"),
]

MODEL = "smollm2"
START_S = 300.0  # two at once, on two cores
BLOCK_TOKENS = 32
BLOCK_BYTES = 30 * 2 * 3 * 64 * 4 * BLOCK_TOKENS  # layers, keys and values, heads, their size, float32
DEVICE_BLOCKS = 17  # one prompt, and half of another


def prompt(number: int) -> str:
    """Of about 360 tokens."""
    return " ".join(f"In chapter {number}-{i} the traveller meets somebody new." for i in range(24))


async def test_what_the_prefill_worker_has_forgotten_is_handed_over_from_its_host_memory(
    own: Deployment, smollm2_dir: Path, tmp_path: Path
) -> None:
    socket = tmp_path / "kvbm" / "s"
    serve = await own.python(
        *("-m", "dynamo.cli.main", "serve", str(smollm2_dir), "--model-name", MODEL, "--http-port", "0"),
        *("--prefill-workers", "1", "--decode-workers", "1", "--system-port", "0"),
        *("--kvbm-host-gb", "0.2", "--kvbm-socket", str(socket)),
        *("--", "--dtype", "float32", "--max-model-len", "512"),
        *("--kv-cache-memory-bytes", str(DEVICE_BLOCKS * BLOCK_BYTES)),
    )
    url = (await serve.line(f"ready: {MODEL} on ", START_S)).split(" on ")[1].split()[0]
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=120, max_retries=0) as openai:
        first, _, _ = [await ask(openai, number) for number in range(3)]
        found, received = await asyncio.to_thread(host_hits, socket), await received_tokens(serve)
        again = await ask(openai, 0)

    text, prompt_tokens, reason = again
    assert again == first
    assert reason == "unconditional"
    assert text
    whole_blocks = prompt_tokens // BLOCK_TOKENS
    assert await asyncio.to_thread(host_hits, socket) == found + whole_blocks
    assert await received_tokens(serve) == received + prompt_tokens


async def ask(openai: AsyncOpenAI, number: int) -> tuple[str, int, str]:
    """The answer, the prompt's tokens, and why it was prefilled where it was."""
    answer = await openai.completions.create(
        model=MODEL,
        prompt=prompt(number),
        max_tokens=16,
        temperature=0,
        extra_body={"ignore_eos": True, "nvext": {"extra_fields": ["routing"]}},
    )
    assert answer.usage is not None
    disagg = (answer.model_extra or {})["nvext"]["disaggregation"]
    return answer.choices[0].text, answer.usage.prompt_tokens, disagg["reason"]


def host_hits(socket: Path) -> int:
    """Blocks that engines have found in host memory."""
    figures = ask_service(socket, Inspect(), 10.0)
    assert isinstance(figures, Figures)
    (host,) = (tier for pool in figures.pools for tier in pool.tiers if tier.tier is StorageTier.HOST)
    return host.hits


async def received_tokens(serve: Program) -> float:
    """Of prompts, that the decode worker was handed."""
    found = re.search(r"\[decode-1\].*system server on (\S+)", serve.output)
    assert found, serve.output
    text = (await get(found[1], "/metrics")).body.decode()
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return sum(s.value for s in samples if s.name == "dynamo_component_kv_transfer_tokens_total")
