"""A fleet under chaos loses nothing. `scripts/chaos` runs the same for longer, and with other seeds."""

from pathlib import Path

import pytest

from dynamo.testing.tiny_model import byte_level_files

from .faults import ON_ONE_HOST, WITH_BROKERS, schedule
from .fleet import Size
from .run import kinds, run

SECONDS = 90.0
SEED = 1


def test_schedules_follow_from_their_seed() -> None:
    assert schedule(1, 60, ON_ONE_HOST) == schedule(1, 60, ON_ONE_HOST) != schedule(2, 60, ON_ONE_HOST)
    assert {fault.kind for fault in schedule(1, 60, WITH_BROKERS)} == set(WITH_BROKERS)
    assert all(0 <= fault.at_s < 60 for fault in schedule(1, 60, ON_ONE_HOST))
    assert schedule(1, 0.4, ON_ONE_HOST) == []


@pytest.mark.alone
@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", [Size(), Size(brokers=True)], ids=["one host", "brokers"])
async def test_nothing_is_lost(tmp_path: Path, size: Size) -> None:
    for name, content in byte_level_files().items():
        (tmp_path / name).write_bytes(content)
    report = await run(tmp_path, size, seed=SEED, seconds=SECONDS)
    assert report.clean, str(report)
    assert set(report.faults) == set(kinds(size))
    assert report.answered > 500
