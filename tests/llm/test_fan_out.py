import asyncio
from collections.abc import AsyncIterator

import pytest

from dynamo.errors import InternalError
from dynamo.llm.fan_out import fan_out
from dynamo.runtime.context import Context
from dynamo.runtime.handler import closing
from dynamo.testing.scripted import Scripted
from dynamo.testing.waiting import within


async def test_all_answers_of_all_requests_each_in_order() -> None:
    handler = Scripted[int, tuple[int, int]](lambda request: [(request, i) for i in range(5)])
    items = [item async for item in fan_out(handler, [7, 8, 9], Context("id"))]
    assert sorted(items) == [(request, i) for request in (7, 8, 9) for i in range(5)]
    assert [item for item in items if item[0] == 8] == [(8, i) for i in range(5)]
    assert handler.open == 0
    assert handler.closed_early == 0


async def test_each_request_has_an_id_of_its_own_and_the_deadline_of_all() -> None:
    handler = Scripted[int, int](lambda request: [request])
    context = Context("id", deadline_s=5.0)
    _ = [item async for item in fan_out(handler, [1, 2], context)]
    assert sorted(child.id() for child in handler.contexts) == ["id-0", "id-1"]
    assert {child.deadline_s for child in handler.contexts} == {5.0}


async def test_the_first_error_ends_the_others() -> None:
    handler = Scripted[int, int](lambda request: [InternalError("oh")] if request == 2 else [request], hang=True)
    with pytest.raises(InternalError, match="oh"):
        await within(_drain(fan_out(handler, [1, 2, 3], Context())))
    assert handler.open == 0
    assert handler.closed_early == 2


async def test_closing_ends_all() -> None:
    handler = Scripted[int, int](lambda request: [request], hang=True)
    async with closing(fan_out(handler, [1, 2], Context())) as stream:
        assert {await within(anext(stream)), await within(anext(stream))} == {1, 2}
        assert handler.open == 2
    assert handler.open == 0
    assert handler.closed_early == 2


async def test_stopping_reaches_each_request() -> None:
    handler = Scripted[int, int](lambda request: [request], hang=True)
    context = Context()
    async with closing(fan_out(handler, [1, 2], context)) as stream:
        await within(anext(stream))
        await within(anext(stream))
        context.stop_generating()
        assert [(child.is_stopped(), child.is_killed()) for child in handler.contexts] == [(True, False)] * 2
        context.kill()
        assert [child.is_killed() for child in handler.contexts] == [True, True]


async def test_a_slow_reader_holds_back_the_streams() -> None:
    made = 0

    async def endless(request: int, context: Context) -> AsyncIterator[int]:
        nonlocal made
        while True:
            made += 1
            yield request
            await asyncio.sleep(0)

    async with closing(fan_out(endless, [1, 2], Context())) as stream:
        await within(anext(stream))
        for _ in range(100):
            await asyncio.sleep(0)
        assert made <= 6


async def _drain(stream: AsyncIterator[int]) -> None:
    async for _ in stream:
        pass
