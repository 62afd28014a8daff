"""A fleet under chaos loses nothing. `scripts/chaos` runs the same for longer, and with other seeds."""

from pathlib import Path

import pytest

from dynamo.testing.tiny_model import byte_level_files

from .faults import Kind, schedule
from .run import KINDS, run

SECONDS = 90.0
SEED = 1


def test_schedules_follow_from_their_seed() -> None:
    assert schedule(1, 60, KINDS) == schedule(1, 60, KINDS) != schedule(2, 60, KINDS)
    assert {fault.kind for fault in schedule(1, 60, KINDS)} == set(KINDS)
    assert all(0 <= fault.at_s < 60 for fault in schedule(1, 60, KINDS))
    assert schedule(1, 0.4, tuple(Kind)) == []


@pytest.mark.alone
@pytest.mark.timeout(600)
async def test_nothing_is_lost(tmp_path: Path) -> None:
    for name, content in byte_level_files().items():
        (tmp_path / name).write_bytes(content)
    report = await run(tmp_path, seed=SEED, seconds=SECONDS)
    assert report.clean, str(report)
    assert set(report.faults) == set(KINDS)
    assert report.answered > 500
