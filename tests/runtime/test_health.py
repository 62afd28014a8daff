from dynamo.runtime.health import Health


def test_ready_once_an_endpoint_is_served() -> None:
    health = Health()
    assert not health.ready
    health.set_endpoint("a.b.c", serving=True)
    assert health.ready
    health.set_endpoint("a.b.d", serving=False)
    assert not health.ready
    assert health.endpoints == {"a.b.c": True, "a.b.d": False}


def test_readiness_by_hand() -> None:
    health = Health()
    health.set_ready(True)
    assert health.ready
    health.set_ready(False)
    health.endpoints["x"] = False  # a copy
    assert health.endpoints == {}
    assert not health.ready


def test_uptime_grows() -> None:
    health = Health()
    before_s = health.uptime_s
    assert 0 <= before_s <= health.uptime_s
