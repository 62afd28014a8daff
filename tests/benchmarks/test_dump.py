"""The dumps of the benchmark arrive, with fewer blocks."""

import pytest

from benchmarks import dump


async def test_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump, "BLOCKS", 10_000)
    rows = await dump.measure()
    assert [row.name for row in rows] == ["the first", "the same blocks again", "other blocks"]
    assert all(0 < row.longest_turn_s <= row.whole_s for row in rows)
