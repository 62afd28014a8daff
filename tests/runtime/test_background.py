"""Background tasks: what becomes of their errors."""

import asyncio
import logging

import pytest

from dynamo.runtime.background import in_background, kept_up


async def _fails() -> None:
    raise ZeroDivisionError("oh")


async def test_an_error_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    await asyncio.wait([in_background(_fails(), "the task")])
    [record] = caplog.records
    assert record.getMessage() == "the task has ended by a defect"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


async def test_an_end_that_is_wanted_is_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "dynamo")
    waiting = in_background(asyncio.Event().wait(), "the task")  # type: ignore[arg-type]
    waiting.cancel()
    await asyncio.wait([waiting, in_background(asyncio.sleep(0), "another")])
    assert not caplog.records


async def test_work_that_must_go_on_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            await _fails()

    await kept_up(work, "the task", pause_s=0)
    assert begun == 3
    assert [record.getMessage() for record in caplog.records] == ["the task was ended by a defect and begins anew"] * 2


async def test_work_that_must_go_on_can_be_cancelled() -> None:
    task = kept_up(lambda: asyncio.Event().wait(), "the task")  # type: ignore[arg-type,return-value]
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
