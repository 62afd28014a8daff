"""`dynamo serve --planner` with real processes, under a load that rises 5x and falls back."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.planner_live import Live, live, send, watched
from benchmarks.planner_live_plan import LivePlan
from benchmarks.planner_live_report import Result, table
from dynamo.testing import eventually

from ..cli.processes import children

PLAN = LivePlan(
    low_per_s=3.0,
    high_per_s=15.0,
    low_s=3.0,
    ramp_s=2.0,
    ramp_steps=1,
    high_s=8.0,
    after_s=5.0,
    max_workers=5,
    interval_s=0.5,
    throughput_interval_s=2.0,
    scale_down_delay_s=1.0,
    startup_s=0.0,
)

_FORGET_S = 60.0  # the planner looks back half a minute


@pytest.fixture
def deployment(tiny_model: Path) -> Iterator[Live]:
    with live(PLAN, tiny_model) as deployment:
        yield deployment


def desired(it: Live) -> int:
    return it.samples[-1].desired if it.samples else 0


def ready(it: Live) -> int:
    return it.samples[-1].ready if it.samples else 0


@pytest.mark.alone
async def test_workers_follow_the_load_and_no_request_fails(deployment: Live) -> None:
    it = deployment
    async with watched(it):
        sending = asyncio.create_task(send(it))
        await eventually(lambda: ready(it) >= 3, PLAN.seconds)
        eldest = next(pid for pid, command in children(it.serve_pid).items() if "dynamo.mocker" in command)
        os.kill(eldest, signal.SIGKILL)
        shots = await sending
        await eventually(lambda: desired(it) == 1, _FORGET_S)
    assert len(shots) > 100
    result = Result(plan=it.plan, shots=shots, samples=it.samples)
    assert result.failed == []
    assert len(table(result).splitlines()) == 8
    log = it.programs.output("serve")
    assert "ended with signal SIGKILL: starting it again" in log
    assert "[worker-3] has ended" in log
    assert "Traceback" not in log
