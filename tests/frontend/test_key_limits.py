"""What a key may be used for, on a clock of the test's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.errors import RateLimitedError
from dynamo.frontend.key_limits import KeyLimits, TokenBucket


def test_bucket() -> None:
    bucket = TokenBucket(60, now_s=100)
    assert [bucket.take(100) for _ in range(60)] == [0.0] * 60
    assert bucket.take(100) == pytest.approx(1.0)
    assert bucket.take(100.75) == pytest.approx(0.25)
    assert bucket.take(101) == 0.0
    assert bucket.take(101) == pytest.approx(1.0)


@given(per_minute=st.integers(1, 600), gaps=st.lists(st.floats(0, 30), max_size=200))
def test_never_more_than_a_minutes_worth_beyond_the_rate(per_minute: int, gaps: list[float]) -> None:
    now_s, granted = 0.0, 0
    bucket = TokenBucket(per_minute, now_s)
    for gap in gaps:
        now_s += gap
        wait_s = bucket.take(now_s)
        granted += wait_s == 0
        assert granted <= per_minute + now_s * per_minute / 60 + 1e-6
        if wait_s:
            assert bucket.take(now_s + wait_s + 1e-6) == 0, "who waits as long as was said gets in"
            now_s += wait_s + 1e-6
            granted += 1


def test_a_clock_that_stands_still_grants_nothing() -> None:
    bucket = TokenBucket(1, now_s=50)
    assert bucket.take(50) == 0
    assert bucket.take(40) == pytest.approx(60)


def test_concurrency() -> None:
    limits = KeyLimits(None, 2, now_s=0)
    limits.enter(0)
    limits.enter(0)
    with pytest.raises(RateLimitedError, match="2 requests running") as refused:
        limits.enter(0)
    assert refused.value.retry_after_s == 1
    limits.leave()
    limits.enter(0)
    assert limits.running == 2


def test_refusal_for_concurrency_uses_no_rate_up() -> None:
    limits = KeyLimits(2, 1, now_s=0)
    limits.enter(0)
    for _ in range(5):
        with pytest.raises(RateLimitedError, match="running"):
            limits.enter(0)
    limits.leave()
    limits.enter(0)
    limits.leave()
    with pytest.raises(RateLimitedError, match="2 requests per minute") as refused:
        limits.enter(0)
    assert refused.value.retry_after_s == pytest.approx(30)


def test_change() -> None:
    limits = KeyLimits(1, 1, now_s=0)
    limits.enter(0)
    limits.change(1, None, now_s=0)
    with pytest.raises(RateLimitedError, match="per minute"):  # the same rate: no fresh start
        limits.enter(0)
    limits.change(5, None, now_s=0)
    limits.enter(0)
    assert limits.running == 2
