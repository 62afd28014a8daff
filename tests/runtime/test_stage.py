"""Handlers as stages."""

from collections.abc import AsyncIterator

import pytest

from dynamo.runtime.context import Context
from dynamo.runtime.handler import closing
from dynamo.runtime.stage import Deliver, pulled, pushed
from dynamo.testing.scripted import Scripted, answers
from dynamo.testing.stages import outputs_of, reading
from dynamo.testing.waiting import eventually, within

Numbers = Scripted[str, int]


async def test_items_in_order_and_the_request_behind_them() -> None:
    handler, context = Numbers(answers(*range(10))), Context()
    assert await outputs_of(pushed(handler), "request", context) == list(range(10))
    assert handler.requests == ["request"]
    assert handler.contexts == [context]
    assert (handler.open, handler.closed_early) == (0, 0)


async def test_reader_that_has_enough_closes_the_handler() -> None:
    handler = Numbers(answers(1, 2, 3), hang=True)
    assert await outputs_of(pushed(handler), "", enough=2) == [1, 2]
    assert (handler.open, handler.closed_early) == (0, 1)


async def test_reader_that_leaves_closes_the_handler() -> None:
    handler = Numbers(answers(1), hang=True)
    async with reading(pushed(handler), "") as reader:
        await reader.until(1)
        assert handler.open == 1
    assert reader.task.cancelled()
    assert (handler.open, handler.closed_early) == (0, 1)


async def test_error_of_the_handler() -> None:
    async with reading(pushed(Numbers(answers(1, ZeroDivisionError("oh")))), "") as reader:
        with pytest.raises(ZeroDivisionError, match="oh"):
            await reader.end()
        assert reader.items == [1]


async def test_error_of_the_reader_closes_the_handler() -> None:
    handler = Numbers(answers(1, 2), hang=True)

    def fail(item: int) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await within(pushed(handler)("", Context(), fail))
    assert (handler.open, handler.closed_early) == (0, 1)


async def test_iterator_that_cannot_be_closed() -> None:
    class Plain:
        def __aiter__(self) -> AsyncIterator[int]:
            return self

        async def __anext__(self) -> int:
            return 1

    assert await outputs_of(pushed(lambda request, context: Plain()), "", enough=3) == [1, 1, 1]


async def test_nothing_is_delivered_during_a_pause() -> None:
    async def handler(request: str, context: Context) -> AsyncIterator[int]:
        for number in range(3):
            context.pause()
            yield number

    context = Context()
    async with reading(pushed(handler), "", context) as reader:
        for count in range(3):
            await reader.until(count)
            await eventually(lambda: bool(context._flow_listeners))
            assert reader.items == list(range(count))
            context.resume()
        assert await reader.end() == [0, 1, 2]


async def test_cancelled_during_a_pause() -> None:
    handler, context = Numbers(answers(1)), Context()
    context.pause()
    async with reading(pushed(handler), "", context) as reader:
        await eventually(lambda: handler.open == 1)
    assert reader.items == []
    assert (handler.open, handler.closed_early) == (0, 1)
    assert context._flow_listeners == []


async def test_kill_during_a_pause_lets_the_handler_go_on_to_its_end() -> None:
    """It is the handler that knows what a kill means to it."""
    context = Context()

    async def handler(request: str, context: Context) -> AsyncIterator[int]:
        yield 1
        if context.is_killed():
            raise ZeroDivisionError
        yield 2

    context.pause()
    async with reading(pushed(handler), "", context) as reader:
        await eventually(lambda: bool(context._flow_listeners))
        context.kill()
        with pytest.raises(ZeroDivisionError):
            await reader.end()


class TestPulled:
    """And back: stages as handlers."""

    async def test_items_in_order(self) -> None:
        numbers = pulled(pushed(Numbers(answers(*range(1000)))))
        assert [item async for item in numbers("", Context())] == list(range(1000))

    async def test_a_reader_that_is_behind_pauses_the_stage(self) -> None:
        delivered: list[int] = []

        async def stage(request: str, context: Context, deliver: Deliver[int]) -> None:
            for number in range(500):
                if context.is_paused():
                    await context.resumed()
                delivered.append(number)
                deliver(number)

        async with closing(pulled(stage)("", Context())) as items:
            assert await within(anext(items)) == 0
            assert 0 < len(delivered) < 100
            assert [item async for item in items] == list(range(1, 500))

    async def test_a_reader_that_leaves_ends_the_work(self) -> None:
        handler = Numbers(answers(1), hang=True)
        async with closing(pulled(pushed(handler))("", Context())) as items:
            assert await within(anext(items)) == 1
        assert (handler.open, handler.closed_early) == (0, 1)

    async def test_error_of_the_stage_comes_after_its_items(self) -> None:
        items = pulled(pushed(Numbers(answers(1, 2, ZeroDivisionError("oh")))))("", Context())
        assert [await within(anext(items)), await within(anext(items))] == [1, 2]
        with pytest.raises(ZeroDivisionError, match="oh"):
            await within(anext(items))
