"""How delays grow."""

from dynamo.runtime.backoff import Backoff


def test_delays_double_up_to_the_longest_and_start_again() -> None:
    backoff = Backoff(1.0, 5.0)
    for full_s in (1.0, 2.0, 4.0, 5.0, 5.0):
        assert full_s / 2 <= backoff.next_s() <= full_s
    backoff.reset()
    assert backoff.next_s() <= 1.0


def test_a_fleet_does_not_retry_in_step() -> None:
    assert len({Backoff(1.0, 5.0).next_s() for _ in range(10)}) > 1
