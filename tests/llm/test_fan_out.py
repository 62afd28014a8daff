import asyncio

import pytest

from dynamo.errors import InternalError
from dynamo.llm.fan_out import fan_out
from dynamo.runtime.context import Context
from dynamo.runtime.stage import Deliver, pushed
from dynamo.testing.scripted import Scripted
from dynamo.testing.stages import outputs_of, reading
from dynamo.testing.waiting import eventually

Numbers = Scripted[int, int]


class FanOut:
    """A Stage for all requests together."""

    def __init__(self, handler: Numbers) -> None:
        self._stage = pushed(handler)

    async def __call__(self, requests: list[int], context: Context, deliver: Deliver[int]) -> None:
        await fan_out(self._stage, requests, context, deliver)


async def test_all_answers_of_all_requests_each_in_order() -> None:
    handler = Numbers(lambda request: [request + i for i in range(5)])
    items = await outputs_of(FanOut(handler), [70, 80, 90])
    assert sorted(items) == [start + i for start in (70, 80, 90) for i in range(5)]
    assert [item for item in items if 80 <= item < 90] == [80, 81, 82, 83, 84]
    assert handler.open == 0
    assert handler.closed_early == 0


async def test_each_request_has_an_id_of_its_own_and_the_deadline_of_all() -> None:
    handler = Numbers(lambda request: [request])
    await outputs_of(FanOut(handler), [1, 2], Context("id", deadline_s=5.0))
    assert sorted(child.id() for child in handler.contexts) == ["id-0", "id-1"]
    assert {child.deadline_s for child in handler.contexts} == {5.0}


async def test_the_first_error_ends_the_others() -> None:
    handler = Numbers(lambda request: [InternalError("oh")] if request == 2 else [request], hang=True)
    with pytest.raises(InternalError, match="oh"):
        await outputs_of(FanOut(handler), [1, 2, 3])
    assert handler.open == 0
    assert handler.closed_early == 2


async def test_an_error_of_the_reader_ends_all() -> None:
    handler = Numbers(lambda request: [request], hang=True)

    def fail(item: int) -> bool:
        if item == 2:
            raise ZeroDivisionError
        return True

    with pytest.raises(ZeroDivisionError):
        await fan_out(pushed(handler), [1, 2, 3], Context(), fail)
    assert handler.open == 0


async def test_a_reader_that_has_enough_ends_all() -> None:
    handler = Numbers(lambda request: [request], hang=True)
    assert len(await outputs_of(FanOut(handler), [1, 2, 3], enough=1)) == 1
    assert handler.open == 0


async def test_a_reader_that_has_enough_gets_nothing_more_from_the_others() -> None:
    """Their items may come in the same turn of the event loop."""
    delivers: list[Deliver[int]] = []

    async def both_at_once(request: int, context: Context, deliver: Deliver[int]) -> None:
        delivers.append(deliver)
        if len(delivers) == 1:
            await asyncio.Event().wait()
        assert [deliver(request) for deliver in delivers] == [False, False]

    async def stage(requests: list[int], context: Context, deliver: Deliver[int]) -> None:
        await fan_out(both_at_once, requests, context, deliver)

    assert await outputs_of(stage, [1, 2], enough=1) == [2]


async def test_cancelling_ends_all() -> None:
    handler = Numbers(lambda request: [request], hang=True)
    async with reading(FanOut(handler), [1, 2]) as reader:
        assert sorted(await reader.until(2)) == [1, 2]
        assert handler.open == 2
    assert handler.open == 0
    assert handler.closed_early == 2


async def test_stopping_reaches_each_request() -> None:
    handler = Numbers(lambda request: [request], hang=True)
    context = Context()
    async with reading(FanOut(handler), [1, 2], context) as reader:
        await reader.until(2)
        context.stop_generating()
        assert [(child.is_stopped(), child.is_killed()) for child in handler.contexts] == [(True, False)] * 2
        context.kill()
        assert [child.is_killed() for child in handler.contexts] == [True, True]


async def test_pausing_reaches_each_request() -> None:
    handler = Numbers(lambda request: [request], hang=True)
    context = Context()
    async with reading(FanOut(handler), [1, 2], context) as reader:
        await reader.until(2)
        for change, paused in ((context.pause, True), (context.resume, False)):
            change()
            assert [child.is_paused() for child in handler.contexts] == [paused] * 2


async def test_a_slow_reader_holds_back_each_request() -> None:
    handler = Numbers(lambda request: [request], hang=True)
    context = Context()
    context.pause()
    async with reading(FanOut(handler), [1, 2], context) as reader:
        await eventually(lambda: handler.open == 2)
        assert reader.items == []
        context.resume()
        assert sorted(await reader.until(2)) == [1, 2]


async def test_what_has_ended_is_followed_no_longer() -> None:
    handler = Numbers(lambda request: [request])
    context = Context()
    await outputs_of(FanOut(handler), [1, 2], context)
    context.pause()
    context.kill()
    assert not any(child.is_paused() or child.is_killed() for child in handler.contexts)
