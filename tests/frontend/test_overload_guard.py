"""Requests that wait at the door."""

import asyncio
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from dynamo.errors import OverloadedError, RequestCancelledError
from dynamo.frontend.overload_config import OverloadConfig
from dynamo.frontend.overload_guard import OverloadGuard
from dynamo.runtime.context import Context
from dynamo.telemetry.metrics import FrontendMetrics
from dynamo.testing import eventually, within


class Door:
    """A guard, the fleet it sees, and the metrics."""

    def __init__(self, **limits: Any) -> None:
        self.busy = False
        self._registry = CollectorRegistry()
        metrics = FrontendMetrics(self._registry)
        self.guard = OverloadGuard(OverloadConfig(**limits), metrics, "m", lambda: (1, self.busy))

    def refused(self, reason: str) -> float | None:
        return self._registry.get_sample_value("dynamo_frontend_refused_requests_total", {"reason": reason})

    def queued(self) -> float | None:
        return self._registry.get_sample_value("dynamo_frontend_admission_queue_requests", {"model": "m"})

    def request(self, context: Context | None = None) -> tuple["asyncio.Task[None]", asyncio.Event]:
        """A request that stays until its event is set."""
        end = asyncio.Event()

        async def run() -> None:
            async with self.guard.admitted(100, context or Context()) as place:
                place.answered(None)
                await end.wait()

        return asyncio.create_task(run()), end


async def test_the_next_comes_in_as_one_leaves() -> None:
    door = Door(max_inflight=1, admission_queue_timeout_s=60.0)
    first, first_end = door.request()
    second, second_end = door.request()
    await eventually(lambda: door.queued() == 1)
    first_end.set()
    await within(first)
    await eventually(lambda: door.queued() == 0)
    assert not second.done()
    second_end.set()
    await within(second)


async def test_nobody_waits_for_ever() -> None:
    door = Door(max_inflight=1, admission_queue_timeout_s=0.01)
    first, end = door.request()
    second, _ = door.request()
    with pytest.raises(OverloadedError, match="too long"):
        await within(second)
    assert (door.refused("queue_timeout"), door.queued()) == (1, 0)
    end.set()
    await within(first)
    third, end = door.request()
    end.set()
    await within(third)


async def test_refusal() -> None:
    door = Door(max_inflight=1, admission_queue_size=0)
    first, end = door.request()
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError) as refused:
        await within(door.request()[0])
    assert refused.value.retry_after_s == 1
    assert door.refused("inflight") == 1
    end.set()
    await within(first)


async def test_who_leaves_gives_the_place_up() -> None:
    door = Door(max_inflight=1, admission_queue_timeout_s=60.0)
    first, first_end = door.request()
    context = Context()
    second, _ = door.request(context)
    third, third_end = door.request()
    cancelled, _ = door.request()
    await eventually(lambda: door.queued() == 3)
    context.kill()
    with pytest.raises(RequestCancelledError):
        await within(second)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert door.queued() == 1
    first_end.set()
    third_end.set()
    await within(asyncio.gather(first, third))


async def test_failures_leave_too() -> None:
    door = Door(max_inflight=1, admission_queue_size=0)

    async def fail() -> None:
        async with door.guard.admitted(100, Context()):
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await within(fail())


async def test_workers_that_are_no_longer_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(admission_queue_timeout_s=60.0)
    door.busy = True
    waiting, end = door.request()
    await eventually(lambda: door.queued() == 1)
    door.busy = False
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s + 1)
    door.guard.let_in()
    monkeypatch.undo()
    end.set()
    await within(waiting)


async def test_the_next_to_come_finds_them_no_longer_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stops reporting, such as one that has gone, says nothing of that either."""
    door = Door(admission_queue_timeout_s=60.0)
    door.busy = True
    waiting, end = door.request()
    await eventually(lambda: door.queued() == 1)
    door.busy = False
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s + 1)
    next_one, next_end = door.request()
    await asyncio.sleep(0)
    monkeypatch.undo()
    end.set()
    next_end.set()
    await within(asyncio.gather(waiting, next_one))


async def test_thousands_at_once() -> None:
    door = Door(max_inflight=3, admission_queue_size=2000, admission_queue_timeout_s=60.0)
    running = most = 0

    async def one() -> None:
        nonlocal running, most
        async with door.guard.admitted(100, Context()):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    await within(asyncio.gather(*(one() for _ in range(2000))))
    assert (running, most, door.queued()) == (0, 3, 0)
