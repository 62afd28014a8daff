"""Who is let in, on a clock of the test's own."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.frontend.overload import Admission, Reason, Refusal, Ticket
from dynamo.frontend.overload_config import OverloadConfig


def admission(**limits: Any) -> Admission:
    return Admission(OverloadConfig(**limits))


def let_in(at: Admission, body_bytes: int = 400, now_s: float = 0.0) -> Ticket:
    ticket = at.arrive(body_bytes, now_s)
    assert isinstance(ticket, Ticket)
    assert ticket.admitted_s == now_s
    return ticket


def queued(at: Admission, body_bytes: int = 400) -> Ticket:
    ticket = at.arrive(body_bytes, 0.0)
    assert isinstance(ticket, Ticket)
    assert ticket.admitted_s is None
    return ticket


def refused(at: Admission, body_bytes: int = 400) -> Reason:
    refusal = at.arrive(body_bytes, 0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.retry_after_s >= 1
    return refusal.reason


def test_without_limits_everybody_comes_in() -> None:
    at = admission()
    tickets = [let_in(at) for _ in range(5000)]
    at.set_fleet(workers=0, busy=False)
    let_in(at)
    for ticket in tickets[:100]:
        at.answered(ticket, 100, 1000.0)
        at.leave(ticket)
    assert (at.inflight, at.unanswered, at.queued) == (4901, 4901, 0)


def test_inflight() -> None:
    at = admission(max_inflight=2, admission_queue_size=2)
    first, second = let_in(at), let_in(at)
    at.answered(first, None, 1.0)
    third, fourth = queued(at), queued(at)
    assert refused(at) is Reason.QUEUE_FULL
    assert at.admit(2.0) == []
    at.leave(first)
    assert at.admit(3.0) == [third]
    assert third.admitted_s == 3.0
    at.leave(fourth)  # has had enough
    at.leave(second)
    assert at.admit(4.0) == []
    assert (at.inflight, at.queued) == (1, 0)


def test_without_a_queue() -> None:
    for nothing in ({"admission_queue_size": 0}, {"admission_queue_timeout_s": 0.0}):
        at = admission(max_inflight=1, **nothing)
        let_in(at)
        assert refused(at) is Reason.INFLIGHT


def test_queued_tokens() -> None:
    at = admission(max_queued_tokens=1000, admission_queue_size=0)
    large = let_in(at, 40_000)  # alone, however large
    assert refused(at, 4) is Reason.QUEUED_TOKENS
    at.answered(large, None, 1.0)
    let_in(at, 2000)
    let_in(at, 2000)
    assert refused(at, 4) is Reason.QUEUED_TOKENS
    assert at.queued_tokens == 1000


def test_what_a_token_takes_is_learnt() -> None:
    at = admission()
    for _ in range(200):
        ticket = let_in(at, 1000)
        at.answered(ticket, 100, 1.0)
        at.leave(ticket)
    assert let_in(at, 1000).tokens == pytest.approx(100, abs=1)


def test_nobody_overtakes_those_who_wait() -> None:
    at = admission(max_queued_tokens=1000)
    first = let_in(at, 3600)
    large = queued(at, 2000)
    small = queued(at, 4)  # it would fit
    at.answered(first, None, 1.0)
    assert at.admit(1.0) == [large, small]


def test_busy_workers() -> None:
    at = admission(admission_queue_size=1)
    at.set_fleet(workers=2, busy=True)
    waits = queued(at)
    assert refused(at) is Reason.QUEUE_FULL
    at.set_fleet(workers=2, busy=False)
    assert at.admit(1.0) == [waits]


def test_time_to_first_token() -> None:
    at = admission(ttft_limit_s=2.0)
    tickets = [let_in(at) for _ in range(100)]
    for i, ticket in enumerate(tickets):
        at.answered(ticket, None, now_s=0.1 * (i + 1))  # ten a second
    room = 0
    while isinstance(at.arrive(400, 20.0), Ticket):
        room += 1
    assert 11 <= room <= 15
    refusal = at.arrive(400, 20.0)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.TTFT
    assert refusal.retry_after_s == pytest.approx(1.3, abs=0.2)


def test_each_worker_may_always_have_a_request() -> None:
    """Where a prompt takes longer than the limit, refusing all would help nobody."""
    at = admission(ttft_limit_s=0.1)
    at.set_fleet(workers=3, busy=False)
    at.answered(let_in(at), None, now_s=60.0)
    for _ in range(3):
        let_in(at)
    assert refused(at) is Reason.TTFT


def test_requests_that_fail_teach_nothing() -> None:
    at = admission(ttft_limit_s=1.0)
    for _ in range(100):
        at.leave(let_in(at))
    assert (at.inflight, at.unanswered, at.queued_tokens) == (0, 0, 0)
    for _ in range(1000):
        let_in(at)


@given(
    limits=st.fixed_dictionaries(
        {
            "max_inflight": st.none() | st.integers(1, 5),
            "max_queued_tokens": st.none() | st.integers(1, 500),
            "ttft_limit_s": st.none() | st.floats(0.1, 5),
            "admission_queue_size": st.integers(0, 4),
        }
    ),
    steps=st.lists(st.tuples(st.sampled_from(["arrive", "answer", "leave", "busy"]), st.integers(0, 1000))),
)
def test_whatever_happens_the_account_is_right(limits: dict[str, Any], steps: list[tuple[str, int]]) -> None:
    at = admission(**limits)
    here: list[Ticket] = []
    for now_s, (step, number) in enumerate(steps):
        inside = [ticket for ticket in here if ticket.admitted_s is not None]
        if step == "arrive":
            ticket = at.arrive(number, now_s)
            here += [ticket] if isinstance(ticket, Ticket) else []
        elif step == "answer" and inside:
            at.answered(inside[number % len(inside)], number, now_s)
        elif step == "leave" and here:
            at.leave(here.pop(number % len(here)))
        elif step == "busy":
            at.set_fleet(workers=number % 3, busy=bool(number % 2))
        at.admit(now_s)
        inside = [ticket for ticket in here if ticket.admitted_s is not None]
        assert at.inflight == len(inside)
        assert at.queued == len(here) - len(inside)
        assert at.unanswered == sum(not ticket.answered for ticket in inside)
        assert at.queued_tokens == sum(ticket.tokens for ticket in inside if not ticket.answered)
        if limits["max_inflight"] is not None:
            assert at.inflight <= limits["max_inflight"]
        assert at.queued <= limits["admission_queue_size"]
