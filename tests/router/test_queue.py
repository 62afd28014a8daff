"""Who of those that wait goes next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.router.config import QueuePolicy
from dynamo.router.queue import RequestQueue
from dynamo.router.routing import RoutingRequest
from dynamo.tokens import token_array

FCFS, LCFS, WSPT = QueuePolicy.FCFS, QueuePolicy.LCFS, QueuePolicy.WSPT


def request(request_id: str, *, arrived_s: float = 0.0, priority: float = 0.0) -> RoutingRequest:
    return RoutingRequest(request_id=request_id, token_ids=token_array(), arrived_s=arrived_s, priority=priority)


def drain(queue: RequestQueue) -> str:
    """Takes all, in their order."""
    order = ""
    while (head := queue.peek()) is not None:
        assert queue.remove(head.request_id)
        order += head.request_id
    return order


@pytest.mark.parametrize(("policy", "order"), [(FCFS, "abc"), (LCFS, "cba"), (WSPT, "bca")])
def test_order(policy: QueuePolicy, order: str) -> None:
    queue = RequestQueue(policy, 9)
    for request_id, arrived_s, prefill_tokens in (("a", 0.0, 300), ("b", 1.0, 100), ("c", 2.0, 200)):
        queue.push(request(request_id, arrived_s=arrived_s), prefill_tokens)
    assert drain(queue) == order


@pytest.mark.parametrize(("policy", "order"), [(FCFS, "abc"), (LCFS, "cba"), (WSPT, "abc")])
def test_order_where_time_stands_still(policy: QueuePolicy, order: str) -> None:
    queue = RequestQueue(policy, 9)
    for request_id in "abc":
        queue.push(request(request_id, arrived_s=5.0), 100)
    assert drain(queue) == order


@pytest.mark.parametrize(("policy", "order"), [(FCFS, "bac"), (LCFS, "bca"), (WSPT, "bac")])
def test_priority(policy: QueuePolicy, order: str) -> None:
    queue = RequestQueue(policy, 9)
    for request_id, arrived_s, priority in (("a", 0.0, 0.0), ("b", 1.0, 10.0), ("c", 2.0, -0.5)):
        queue.push(request(request_id, arrived_s=arrived_s, priority=priority), 100)
    assert drain(queue) == order


def test_priority_is_a_head_start_in_seconds() -> None:
    queue = RequestQueue(FCFS, 9)
    queue.push(request("a", arrived_s=0.0), 1)
    queue.push(request("b", arrived_s=5.0, priority=4.9), 1)
    queue.push(request("c", arrived_s=5.0, priority=5.1), 1)
    assert drain(queue) == "cab"


def test_a_fully_cached_prompt_is_the_shortest() -> None:
    queue = RequestQueue(WSPT, 9)
    queue.push(request("a"), 2)
    queue.push(request("b"), 0)
    assert drain(queue) == "ba"


def test_a_low_priority_is_a_small_weight_not_a_negative_one() -> None:
    """Else the longest of them would go first."""
    queue = RequestQueue(WSPT, 9)
    for request_id, priority, prefill_tokens in (("a", -3.0, 100), ("b", -3.0, 200), ("c", 0.0, 390)):
        queue.push(request(request_id, priority=priority), prefill_tokens)
    assert drain(queue) == "cab"


def test_withdrawn_ones_are_passed_over() -> None:
    queue = RequestQueue(FCFS, 9)
    for request_id in "abc":
        queue.push(request(request_id), 1)
    assert queue.remove("a")
    assert not queue.remove("a")
    assert queue.remove("c")
    assert len(queue) == 1
    assert drain(queue) == "b"
    assert queue.peek() is None


def test_full() -> None:
    queue = RequestQueue(FCFS, 2)
    for request_id in "ab":
        assert not queue.full
        queue.push(request(request_id), 1)
    assert queue.full
    with pytest.raises(AssertionError):
        queue.push(request("c"), 1)
    queue.remove("a")
    assert not queue.full


def test_an_id_waits_once() -> None:
    queue = RequestQueue(FCFS, 9)
    queue.push(request("a"), 1)
    with pytest.raises(AssertionError):
        queue.push(request("a"), 1)


def test_withdrawn_ones_do_not_pile_up() -> None:
    """Behind a head that has to wait."""
    queue = RequestQueue(FCFS, 9)
    queue.push(request("head"), 1)
    for number in range(1000):
        queue.push(request(str(number), arrived_s=1.0), 1)
        queue.remove(str(number))
    assert len(queue._heap) < 100
    assert drain(queue) == "head"


arrivals = st.lists(
    st.tuples(st.integers(0, 5), st.integers(-3, 3), st.integers(0, 9), st.booleans()), min_size=1, max_size=30
)


@given(arrivals=arrivals)
def test_first_come_first_served_is_a_stable_sort(arrivals: list[tuple[int, int, int, bool]]) -> None:
    queue = RequestQueue(FCFS, len(arrivals))
    for number, (arrived_s, priority, prefill_tokens, _) in enumerate(arrivals):
        queue.push(request(chr(97 + number), arrived_s=arrived_s, priority=priority), prefill_tokens)
    for number, arrival in enumerate(arrivals):
        if arrival[3]:
            queue.remove(chr(97 + number))

    left = [(arrival[0] - arrival[1], number) for number, arrival in enumerate(arrivals) if not arrival[3]]
    assert drain(queue) == "".join(chr(97 + number) for _, number in sorted(left))
