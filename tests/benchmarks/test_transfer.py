"""The benchmark of transfers, with little to move."""

import pytest

from benchmarks import transfer


async def test_every_way_has_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MEMORY_MB", 8)
    monkeypatch.setattr(transfer, "BATCHES", [(1, 64), (2, 256)])
    monkeypatch.setattr(transfer, "LATENCY_ROUNDS", 2)
    table = (await transfer.measure(["cma", "shm", "tcp"], rounds=1)).splitlines()
    ways = ["memcpy", "cma", "shm", "tcp", "plain socket"]
    assert [title.partition(":")[0].strip() for title in table[0].split("|")[3:-1]] == ways
    rows = [[float(cell.split()[0]) for cell in row.split("|")[1:-1]] for row in table[2:4]]
    assert [row[:2] for row in rows] == [[1, 64], [2, 256]]
    assert all(figure > 0 for row in rows for figure in row)
    assert [cell.strip() for cell in table[5].split("|")[2:-1]] == ways
