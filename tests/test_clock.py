import pytest

from dynamo.clock import Clock, VirtualClock


def test_moves_only_when_told() -> None:
    clock: Clock = (virtual := VirtualClock(5.0))
    assert clock.now_s() == clock.now_s() == 5.0
    virtual.advance(0.25)
    virtual.advance(0)
    assert clock.now_s() == 5.25


def test_time_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="backwards"):
        VirtualClock().advance(-1)


def test_moves_to_an_exact_time() -> None:
    clock = VirtualClock(0.3)
    clock.move_to(0.7)
    assert clock.now_s() == 0.7
    clock.move_to(0.7)
    with pytest.raises(ValueError, match="backwards"):
        clock.move_to(0.6)
