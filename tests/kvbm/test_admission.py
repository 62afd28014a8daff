from dynamo.kvbm.admission import TierCost


def test_what_is_not_known_is_asked() -> None:
    assert TierCost().fitting(100, 0, 0.1, 0.0) == 100


def test_as_many_as_can_come_in_time() -> None:
    cost = TierCost()
    cost.took(0.1, 10)  # ten beside each other in 100 ms
    assert cost.fitting(1000, 0, 1.0, 0.0) == 100
    assert cost.fitting(1000, 40, 1.0, 0.0) == 60
    assert cost.fitting(5, 0, 1.0, 0.0) == 5


def test_a_slow_tier_gets_one_probe_at_a_time_and_recovers() -> None:
    cost = TierCost()
    cost.took(5.0, 1)
    assert [cost.fitting(8, 0, 1.0, now_s) for now_s in (1.0, 2.0, 5.9, 6.0)] == [1, 0, 0, 1]
    for _ in range(20):
        cost.took(0.01, 1)
    assert cost.fitting(8, 0, 1.0, 7.0) == 8


def test_pauses_after_failures_double() -> None:
    cost = TierCost()
    cost.failed(0.0)
    cost.failed(0.5)  # of the same trouble
    assert (cost.is_paused(0.9), cost.is_paused(1.0)) == (True, False)
    cost.failed(1.0)
    assert (cost.is_paused(2.9), cost.is_paused(3.0)) == (True, False)
    assert cost.fitting(8, 0, 1.0, 2.0) == 0
    assert cost.fitting(8, 0, 1.0, 3.0) == 1
    cost.took(0.001, 1)
    assert (cost.has_failed, cost.retry_at_s) == (False, None)
    assert cost.fitting(8, 0, 1.0, 3.1) == 8
