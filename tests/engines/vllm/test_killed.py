"""vLLM's processes go when the worker is killed, without being asked by anybody."""

import subprocess
import sys
from pathlib import Path

import pytest

from .processes import descendants, kill_and_wait

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

PROGRAM = Path(__file__).with_name("engine_process.py")


def test_nothing_outlives_a_killed_worker(smollm2_dir: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--model", str(smollm2_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "started\n"
        below = descendants(worker.pid)
        assert len(below) >= 2  # the engine process and its worker

        assert kill_and_wait(worker.pid, below, timeout_s=2) == []
