"""Background tasks: what becomes of their errors."""

import asyncio
import logging

import pytest

from dynamo.runtime.background import in_background


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
