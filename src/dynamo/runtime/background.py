"""Tasks that run beside everything else, and whose end nobody waits for."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

logger = logging.getLogger(__name__)

_PAUSE_S = 1.0


def in_background(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Starts it as a task, which the caller keeps and cancels. An error that ends it is logged."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_report)
    return task


def kept_up(
    work: Callable[[], Coroutine[Any, Any, None]], name: str, *, pause_s: float = _PAUSE_S
) -> asyncio.Task[None]:
    """As in_background(), for work that must go on: after an error, which is logged, it begins anew."""
    return asyncio.create_task(_keep_up(work, name, pause_s), name=name)


async def _keep_up(work: Callable[[], Coroutine[Any, Any, None]], name: str, pause_s: float) -> None:
    while True:
        try:
            return await work()
        except Exception:  # the task's boundary: a process without this work is worse than one with a defect
            logger.exception("%s was ended by a defect and begins anew", name)
        await asyncio.sleep(pause_s)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s has ended by a defect", task.get_name(), exc_info=error)
