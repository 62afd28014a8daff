import asyncio
import time
from collections.abc import Callable

import pytest

from dynamo.runtime import Context
from dynamo.testing import within


def test_identity() -> None:
    assert Context("my-id").id() == "my-id"
    assert len(Context().id()) == 32
    assert Context().id() != Context().id()
    assert Context("").id()


@pytest.mark.parametrize("request_id", [5, b"x", "\udcff"])
def test_ids_that_cannot_travel(request_id: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        Context(request_id)  # type: ignore[arg-type]


def test_stop_and_kill() -> None:
    context = Context()
    assert (context.is_stopped(), context.is_killed()) == (False, False)
    context.stop_generating()
    assert (context.is_stopped(), context.is_killed()) == (True, False)
    context.kill()
    assert (context.is_stopped(), context.is_killed()) == (True, True)
    assert Context().is_stopped() is False


def test_listeners_hear_a_stop_and_a_kill_once() -> None:
    heard: list[bool] = []
    context = Context()
    context.on_stop(lambda context: heard.append(context.is_killed()))
    for _ in range(2):
        context.stop_generating()
    for _ in range(2):
        context.kill()
    assert heard == [False, True]


def test_late_listener_hears_at_once() -> None:
    heard: list[bool] = []
    context = Context()
    context.kill()
    context.on_stop(lambda context: heard.append(context.is_killed()))
    assert heard == [True]


def test_listener_that_has_left_hears_nothing() -> None:
    heard: list[Context] = []
    context = Context()
    leave = context.on_stop(heard.append)
    leave()
    leave()
    context.kill()
    assert heard == []


def test_listener_may_leave_while_others_are_told() -> None:
    heard: list[str] = []
    context = Context()

    def once(_: Context) -> None:
        heard.append("first")
        leave()

    leave = context.on_stop(once)
    context.on_stop(lambda _: heard.append("second"))
    context.stop_generating()
    context.kill()
    assert heard == ["first", "second", "second"]


@pytest.mark.parametrize("end", [Context.stop_generating, Context.kill])
async def test_waiting(end: object) -> None:
    context = Context()
    waiting = asyncio.create_task(context.async_killed_or_stopped())
    await asyncio.sleep(0)
    assert not waiting.done()
    end(context)  # type: ignore[operator]
    assert await within(waiting) is True
    assert await within(context.async_killed_or_stopped()) is True


async def test_waiter_that_gave_up_leaves_no_listener() -> None:
    context = Context()
    waiting = asyncio.create_task(context.async_killed_or_stopped())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert context._listeners == []


def test_pause_and_resume() -> None:
    heard: list[bool] = []
    context = Context()
    context.on_flow(lambda context: heard.append(context.is_paused()))
    context.resume()
    assert not context.is_paused()
    for change in (context.pause, context.resume) * 2:
        for _ in range(2):
            change()
    assert heard == [True, False, True, False]
    assert not context.is_stopped()


def test_late_listener_hears_of_a_pause_at_once() -> None:
    heard: list[bool] = []
    context = Context()
    context.on_flow(lambda context: heard.append(context.is_paused()))
    assert heard == []
    context.pause()
    context.on_flow(lambda context: heard.append(context.is_paused()))
    assert heard == [True, True]


def test_pauses_and_ends_are_told_to_their_own_listeners() -> None:
    flow: list[Context] = []
    ends: list[Context] = []
    context = Context()
    context.on_flow(flow.append)
    context.on_stop(ends.append)
    context.pause()
    assert (len(flow), len(ends)) == (1, 0)
    context.kill()
    assert (len(flow), len(ends)) == (1, 1)
    assert context.is_paused()


def test_listener_to_pauses_that_has_left_hears_nothing() -> None:
    heard: list[Context] = []
    context = Context()
    leave = context.on_flow(heard.append)
    leave()
    leave()
    context.pause()
    assert heard == []


async def test_waiting_for_a_resume() -> None:
    context = Context()
    await within(context.resumed())
    context.pause()
    waiting = asyncio.create_task(context.resumed())
    await asyncio.sleep(0)
    context.resume()
    context.pause()  # before the waiter had its turn
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    context.resume()
    await within(waiting)
    assert context._flow_listeners == context._listeners == []


@pytest.mark.parametrize("end", [Context.stop_generating, Context.kill])
async def test_waiting_for_a_resume_ends_with_the_request(end: Callable[[Context], None]) -> None:
    context = Context()
    context.pause()
    waiting = asyncio.create_task(context.resumed())
    await asyncio.sleep(0)
    assert not waiting.done()
    end(context)
    await within(waiting)
    await within(context.resumed())


async def test_waiter_for_a_resume_that_gave_up_leaves_no_listener() -> None:
    context = Context()
    context.pause()
    waiting = asyncio.create_task(context.resumed())
    await asyncio.sleep(0)
    assert context._flow_listeners
    waiting.cancel()
    await asyncio.wait([waiting])
    assert context._flow_listeners == context._listeners == []


def test_deadline() -> None:
    assert Context().remaining_s() is None
    remaining_s = Context(deadline_s=time.monotonic() + 100).remaining_s()
    assert remaining_s is not None
    assert 99 < remaining_s <= 100
    late_s = Context(deadline_s=time.monotonic() - 1).remaining_s()
    assert late_s is not None
    assert late_s < 0


def test_detached_context_has_its_own_fate() -> None:
    context = Context("a", {"k": "v"}, deadline_s=5.0, traceparent="00-aa-bb-01")
    other = context.detached("b")
    assert (other.id(), other.metadata, other.deadline_s, other.traceparent) == ("b", {"k": "v"}, 5.0, "00-aa-bb-01")
    other.metadata["k"] = "w"
    other.pause()
    other.kill()
    assert not context.is_paused()
    assert context.metadata == {"k": "v"}
    assert not context.is_stopped()
