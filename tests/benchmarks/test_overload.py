"""The overload benchmark: what counts as good, and one short run."""

from pathlib import Path

import pytest

from benchmarks.goodput import Targets
from benchmarks.open_loop import Shot
from benchmarks.overload import Plan, Row, is_good, measure, table

TARGETS = Targets(ttft_s=1.0, tpot_s=0.05)
GOOD = Shot(status=200, ttft_s=1.0, tpot_s=0.05, waited_s=2.0)


@pytest.mark.parametrize(
    ("shot", "good"),
    [
        (GOOD, True),
        (Shot(status=200, ttft_s=1.01, tpot_s=0.05), False),
        (Shot(status=200, ttft_s=1.0, tpot_s=0.06), False),
        (Shot(status=200, ttft_s=1.0), False),  # not complete
        (Shot(status=503), False),
        (Shot(), False),
    ],
)
def test_what_is_good(shot: Shot, good: bool) -> None:
    assert is_good(shot, TARGETS) == good


def test_a_row() -> None:
    silent = Shot(waited_s=9.0)  # never had an answer
    row = Row.of("x", 2.0, [GOOD] * 4 + [Shot(status=503)] * 4 + [silent] * 2, Plan(seconds=2.0, targets=TARGETS))
    assert (row.offered_per_s, row.goodput_per_s) == (5.0, 2.0)
    assert row.refused_share == pytest.approx(0.4)
    assert (row.ttft_p50_s, row.ttft_p99_s) == (1.0, 9.0)


def test_a_short_run(model_dir: Path) -> None:
    plan = Plan(workers=1, loads=(0.5,), seconds=1.0, warm_up_s=0.2, targets=Targets(ttft_s=30.0, tpot_s=5.0))
    rows = list(measure(plan, model_dir))
    assert [row.title for row in rows] == ["no limits", "protected"]
    for row in rows:
        assert row.refused_share == 0
        assert row.goodput_per_s == row.offered_per_s > 1
        assert 0 < row.ttft_p50_s <= row.ttft_p99_s < 30
    assert table(rows).count("\n") == 3
