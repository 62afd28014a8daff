"""Running a coroutine on a loop of its own, and finding what it has left behind."""

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_SETTLE_TURNS = 10  # turns of the event loop in which cancelled tasks and closed sockets come to their end


def run_strictly(
    work: Coroutine[Any, Any, T],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> T:
    """The result of `work`; AssertionError when it leaves a task, or an exception that nobody handled."""
    unhandled: list[str] = []

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(str(context)))
        result = await work
        for _ in range(_SETTLE_TURNS):
            await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"left tasks: {left}"
        return result

    gc.freeze()  # what is there already need not be looked through
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        result = runner.run(watched())
        gc.collect()  # an exception that nobody asked for is reported when its task is collected
    gc.unfreeze()
    assert not unhandled, f"unhandled: {unhandled}"
    return result
