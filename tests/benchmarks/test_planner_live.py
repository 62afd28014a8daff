"""The planner's live benchmark: its load, and what it counts. tests/e2e/test_serve_planner.py has a run."""

import pytest

from benchmarks.answer import is_whole
from benchmarks.open_loop import Shot
from benchmarks.planner_live_plan import LivePlan
from benchmarks.planner_live_report import Result, Sample, phases, table

GOOD = Shot(status=200, ttft_s=0.1, tpot_s=0.01, at_s=1.0, whole=True)
PLAN = LivePlan(low_s=2.0, ramp_s=4.0, high_s=3.0, after_s=1.0, ramp_steps=2, low_per_s=2.0, high_per_s=10.0)


def test_the_load_rises_and_falls_back() -> None:
    stretches = PLAN.stretches()
    assert [stretch.rate_per_s for stretch in stretches] == [2.0, 4.0, 8.0, 10.0, 8.0, 4.0, 2.0]
    assert [stretch.seconds for stretch in stretches] == [2.0, 2.0, 2.0, 3.0, 2.0, 2.0, 1.0]
    assert [phase.end_s for phase in phases(PLAN)] == [2.0, 6.0, 9.0, 13.0, 14.0]
    assert PLAN.seconds == 14.0


@pytest.mark.parametrize(
    ("shot", "failed"),
    [
        (GOOD, False),
        (Shot(status=200, ttft_s=0.1, at_s=1.0), True),  # broken off, or ended by an error
        (Shot(status=503, at_s=1.0), True),
        (Shot(at_s=1.0), True),
    ],
)
def test_what_has_failed(shot: Shot, failed: bool) -> None:
    assert bool(Result(plan=PLAN, shots=[shot], samples=[]).failed) == failed


def test_table() -> None:
    samples = [Sample(at_s=0.5, desired=1, ready=1, held=1), Sample(at_s=1.5, desired=3, ready=2, held=3)]
    late = Shot(status=200, ttft_s=2.0, at_s=1.5, whole=True)
    lines = table(Result(plan=PLAN, shots=[GOOD, late, Shot(status=500, at_s=1.9)], samples=samples)).splitlines()
    assert lines[2] == "| low | 2 | 1.5 | 2.0 | 2 | 0.10 s | 2.00 s | 50% | 1 |"
    assert lines[-1].startswith("| all | 14 |")


@pytest.mark.parametrize(
    ("body", "whole"),
    [
        (b'data: {"finish_reason":"length"}\n\ndata: [DONE]\n\n', True),
        (b'data: {"finish_reason":null}\n\ndata: [DONE]\n\n', False),
        (b'data: {"finish_reason":"length"}\n\n', False),
        (b'data: {"error":{"code":502}}\n\ndata: [DONE]\n\n', False),
    ],
)
def test_a_whole_answer(body: bytes, whole: bool) -> None:
    assert is_whole(body) == whole
