"""Simulated tiers with real processes: what the device has given up comes back, and the router counts on it."""

import asyncio
from pathlib import Path

import pytest

from dynamo.testing.deployment import Deployment

from .conversations import BLOCK, KV, Conversation, Turn
from .served import MOCK, until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

DEVICE_BLOCKS = 64  # two or three of the prompts
BYTES_PER_TOKEN = 1024
HOST = ("--kvbm-host-gb", "0.1", "--kv-bytes-per-token", str(BYTES_PER_TOKEN))
SMALL = ("--block-size", str(BLOCK), "--num-gpu-blocks-override", str(DEVICE_BLOCKS), "--max-model-len", "1000")


def chosen(turn: Turn) -> tuple[int, int, int]:
    """Blocks of the prompt by tier, at the worker that got it."""
    [report] = [each for each in turn.routing.candidates if each.worker_id == turn.routing.worker_id]
    return report.device_blocks, report.host_blocks, report.disk_blocks


async def test_a_conversation_comes_back_from_host_memory(own: Deployment, tiny_model: Path) -> None:
    (_, url), _ = await asyncio.gather(
        own.frontend(*KV),
        own.mocker(tiny_model, MOCK, *SMALL, *HOST, "--num-workers", "2", "--speedup-ratio", "20"),
    )
    await until_served(url, 2)
    kept = Conversation(url, "kept")
    first = await kept.turn()
    at_home = {"backend_instance_id": first.routing.worker_id}
    for number in range(4):
        other = Conversation(url, f"other {number}")
        assert (await other.turn(**at_home)).routing.worker_id == first.routing.worker_id
    again = await kept.turn()

    device, host, disk = chosen(again)
    assert host > 0
    assert disk == 0
    assert device + host == again.routing.overlap_blocks >= first.prompt_tokens // BLOCK - 1
    assert again.cached_tokens >= again.routing.overlap_blocks * BLOCK, "the engine finds what the router expects"
    assert again.routing.worker_id == first.routing.worker_id

    empty = next(each for each in again.routing.candidates if each.worker_id != first.routing.worker_id)
    [home] = [each for each in again.routing.candidates if each.worker_id == first.routing.worker_id]
    assert (empty.device_blocks, empty.host_blocks) == (0, 0)
    saved = empty.cost - home.cost
    assert saved == pytest.approx(32 * (8 * device + 6 * host), abs=32), (
        "a block in host memory counts as three quarters"
    )
