"""The benchmark of the disk tier, with little to move."""

import os
from pathlib import Path

import pytest

from benchmarks import kvbm_disk


async def test_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvbm_disk, "PAYLOADS_KB", [4, 64])
    table = (await kvbm_disk.measure(tmp_path, batches=2)).splitlines()
    rows = [[float(cell) for cell in row.split("|")[1:-1]] for row in table[2:]]
    assert [row[0] for row in rows] == [4, 64]
    assert all(figure > 0 for row in rows for figure in row)
    assert not os.listdir(tmp_path)
