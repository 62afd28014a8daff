"""Sessions and their workers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.protocols.generation import WorkerId
from dynamo.router.affinity import Sessions

A, B = WorkerId(1), WorkerId(2)


def test_a_session_has_the_worker_of_its_latest_request() -> None:
    sessions = Sessions(ttl_s=10.0)
    assert sessions.worker("s", 0.0) is None
    sessions.put("s", A, 0.0)
    sessions.put("s", B, 1.0)
    assert sessions.worker("s", 1.0) == B
    assert sessions.worker("other", 1.0) is None


def test_each_request_keeps_the_session_alive() -> None:
    sessions = Sessions(ttl_s=10.0)
    sessions.put("s", A, 0.0)
    sessions.put("s", A, 9.0)
    assert sessions.worker("s", 18.9) == A
    assert sessions.worker("s", 19.0) is None


def test_old_sessions_take_no_room() -> None:
    sessions = Sessions(ttl_s=10.0)
    sessions.put("old", A, 0.0)
    sessions.put("used", A, 1.0)
    sessions.put("used", A, 10.0)
    assert len(sessions) == 1
    assert sessions.worker("used", 10.0) == A


def test_the_one_used_longest_ago_makes_room() -> None:
    sessions = Sessions(ttl_s=10.0, size_max=2)
    for session_id in ("a", "b", "a", "c"):
        sessions.put(session_id, A, 0.0)
    assert [sessions.worker(s, 0.0) for s in "abc"] == [A, None, A]


@pytest.mark.parametrize(("ttl_s", "size_max"), [(0.0, 9), (10.0, 0)])
def test_nothing_is_remembered_where_that_is_wished(ttl_s: float, size_max: int) -> None:
    sessions = Sessions(ttl_s, size_max)
    sessions.put("s", A, 0.0)
    assert sessions.worker("s", 0.0) is None
    assert len(sessions) == 0


@given(uses=st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from([A, B]), st.integers(0, 4))))
def test_against_a_plain_history(uses: list[tuple[str, WorkerId, int]]) -> None:
    sessions = Sessions(ttl_s=6.0, size_max=3)
    latest: dict[str, tuple[WorkerId, int]] = {}  # in the order of use
    now_s = 0
    for session_id, worker, seconds in uses:
        now_s += seconds
        sessions.put(session_id, worker, now_s)
        latest.pop(session_id, None)
        latest[session_id] = (worker, now_s)
        kept = dict([item for item in latest.items() if now_s - item[1][1] < 6][-3:])
        assert {s: sessions.worker(s, now_s) for s in "abcdef"} == {
            s: kept[s][0] if s in kept else None for s in "abcdef"
        }
        assert len(sessions) == len(kept)
