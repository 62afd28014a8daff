"""The benchmark of the event plane has events arrive, by both ways."""

import pytest

from benchmarks import event_plane


@pytest.mark.parametrize("plane", ["direct", "nats"])
async def test_measure(plane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_plane, "EVENTS", 20)
    worker, broker, router = await event_plane.measure(plane, 2)
    assert router > 0
    assert worker >= 0  # in ticks of the system's clock
    assert broker >= 0
