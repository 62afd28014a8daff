"""vLLM's processes go when the worker is killed, though nobody is left to ask them."""

from pathlib import Path

import pytest

from dynamo.engines.vllm.ownership import descendants
from dynamo.testing.program import program

from .processes import kill_and_wait

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


async def test_nothing_outlives_a_killed_worker(smollm2_dir: Path, tmp_path: Path) -> None:
    flags = ["--model", str(smollm2_dir), "--file-kv", str(tmp_path)]
    async with program(["-m", "dynamo.vllm", *flags]) as worker:
        await worker.line("ready:", seconds=240)
        below = descendants(worker.pid)
        assert len(below) >= 2  # the engine process and its worker

        assert kill_and_wait(worker.pid, below, timeout_s=2) == []
