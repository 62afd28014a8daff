"""Workers that fall silent, and those that only seem to."""

import asyncio
import time

import pytest

from dynamo.errors import WorkerStalledError
from dynamo.llm.stall_watch import watched
from dynamo.runtime.context import Context
from dynamo.testing import within


async def test_a_silence_lasts_as_long_as_was_said() -> None:
    began_s = time.monotonic()
    with pytest.raises(WorkerStalledError, match=r"nothing for 0\.04 s"):
        await _says_something_once(0.04)
    assert time.monotonic() - began_s >= 0.04


async def test_a_process_that_was_held_up_reads_first_what_has_come() -> None:
    async with watched(Context(), 0.2) as watch:
        watch.heard = True
        await _passing(0.06)  # it has looked once
        time.sleep(0.4)  # noqa: ASYNC251 - which is what holds it up
        await _passing(0.02)
        watch.heard = True


@pytest.mark.parametrize("timeout_s", [0.0, 0.01])
async def test_none_before_anything_was_heard_and_none_without_a_limit(timeout_s: float) -> None:
    async with watched(Context(), timeout_s) as watch:
        watch.heard = not timeout_s
        await _passing(0.1)


async def test_a_reader_that_is_behind_begins_the_waiting_anew() -> None:
    context = Context()
    reading = asyncio.create_task(_says_something_once(0.1, context))
    await _passing(0.07)
    context.pause()
    context.resume()
    resumed_s = time.monotonic()
    with pytest.raises(WorkerStalledError):
        await within(reading)
    assert time.monotonic() - resumed_s >= 0.1


async def _says_something_once(timeout_s: float, context: Context | None = None) -> None:
    async with watched(context or Context(), timeout_s) as watch:
        watch.heard = True
        await within(asyncio.Event().wait())


async def _passing(seconds: float) -> None:
    """Nothing happens for so long."""
    with pytest.raises(TimeoutError):
        await within(asyncio.Event().wait(), seconds)
