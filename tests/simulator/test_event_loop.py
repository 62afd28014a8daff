import pytest

from dynamo.clock import VirtualClock
from dynamo.simulator.event_loop import EventLoop


def test_in_the_order_of_time_then_of_asking() -> None:
    clock = VirtualClock()
    loop = EventLoop(clock)
    seen: list[tuple[str, float, float]] = []

    def note(name: str) -> None:
        loop.at(times_s[name], lambda now_s: seen.append((name, now_s, clock.now_s())))

    times_s = {"late": 0.3, "first": 0.1, "second": 0.1}
    for name in times_s:
        note(name)
    loop.run()

    assert seen == [("first", 0.1, 0.1), ("second", 0.1, 0.1), ("late", 0.3, 0.3)]


def test_what_happens_may_ask_for_more() -> None:
    loop = EventLoop(VirtualClock())
    seen: list[float] = []

    def again(now_s: float) -> None:
        seen.append(now_s)
        if len(seen) < 3:
            loop.at(now_s + 1, again)

    loop.at(0, again)
    loop.run()
    assert seen == [0, 1, 2]


def test_the_past_is_past() -> None:
    loop = EventLoop(VirtualClock(5))
    loop.at(4, lambda _: None)
    with pytest.raises(ValueError, match="backwards"):
        loop.run()
