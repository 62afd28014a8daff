"""Requests that look for another worker."""

import asyncio
import time

import pytest

from dynamo.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    DrainingError,
    DynamoError,
    NobodyLeftError,
    NoInstancesError,
    OverloadedError,
    RequestCancelledError,
)
from dynamo.llm.patience import Patience
from dynamo.runtime.context import Context
from dynamo.testing import within

NOBODY = NoInstancesError("none")


async def test_who_has_lost_a_worker_waits() -> None:
    for failure, begun in ((NOBODY, True), (OverloadedError("full"), True), (NobodyLeftError("lost"), False)):
        await within(Patience(Context(), 60.0).wait(failure, begun=begun))


async def test_and_goes_on_waiting_whatever_is_the_matter_then() -> None:
    patience = Patience(Context(), 60.0)
    await within(patience.wait(NobodyLeftError("lost"), begun=False))
    await within(patience.wait(NOBODY, begun=False))


@pytest.mark.parametrize(("failure", "begun"), [(NOBODY, False), (ConnectionLostError("gone"), True)])
async def test_who_does_not(failure: DynamoError, begun: bool) -> None:
    with pytest.raises(type(failure)) as raised:
        await within(Patience(Context(), 60.0).wait(failure, begun=begun))
    assert raised.value is failure


async def test_who_was_refused_by_one_that_leaves_waits_for_news_of_another() -> None:
    began_s = time.monotonic()
    with pytest.raises(NoInstancesError):
        await within(_wait_on(Patience(Context(), 60.0), DrainingError("leaves"), begun=False))
    assert time.monotonic() - began_s < 5


async def test_who_loses_a_worker_meanwhile_waits_for_as_long_as_others() -> None:
    patience = Patience(Context(), 0.3)
    await within(patience.wait(DrainingError("leaves"), begun=False))
    began_s = time.monotonic()
    with pytest.raises(NoInstancesError):
        await within(_wait_on(patience, NobodyLeftError("lost"), begun=False))
    assert time.monotonic() - began_s >= 0.3


async def test_an_end() -> None:
    began_s = time.monotonic()
    with pytest.raises(NoInstancesError):
        await within(_wait_on(Patience(Context(), 0.2)))
    assert time.monotonic() - began_s >= 0.2


async def test_no_longer_than_the_deadline() -> None:
    with pytest.raises(DeadlineExceededError):
        await within(_wait_on(Patience(Context(deadline_s=time.monotonic() + 0.02), 60.0)))


async def test_a_stop_ends_it() -> None:
    context = Context()
    waiting = asyncio.create_task(_wait_on(Patience(context, 60.0)))
    await asyncio.sleep(0)
    context.stop_generating()
    with pytest.raises(RequestCancelledError):
        await within(waiting)


async def _wait_on(patience: Patience, first: DynamoError = NOBODY, *, begun: bool = True) -> None:
    await patience.wait(first, begun=begun)
    while True:
        await patience.wait(NOBODY, begun=begun)
