"""The handle of a transfer: what it says of ends that are none of the usual ones."""

import asyncio
import threading
from typing import Any

import pytest

from dynamo.errors import ConnectionLostError, InternalError, RequestCancelledError
from dynamo.testing import within
from dynamo.transfer import Agent, TransferState, cma
from dynamo.transfer.threads import Threads


async def test_a_failure_that_nobody_has_thought_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(cma.CmaLink, "copy", fail)
    async with Agent("a", ["cma"]) as near, Agent("b", ["cma"]) as far:
        ours, theirs = near.register(bytearray(8)), far.register(bytearray(8))
        near.add_peer(far.metadata())
        transfer = near.read(ours.all(), theirs.all())
        with pytest.raises(InternalError, match="MemoryError"):
            await within(transfer)
        assert transfer.state is TransferState.FAILED


async def test_a_task_that_is_cancelled_ends_when_its_threads_have(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def slowly(*_: Any) -> None:
        begun.set()
        assert go_on.wait(10)
        ended.set()

    monkeypatch.setattr(cma.CmaLink, "copy", slowly)
    async with Agent("a", ["cma"]) as near, Agent("b", ["cma"]) as far:
        ours, theirs = near.register(bytearray(8)), far.register(bytearray(8))
        near.add_peer(far.metadata())
        transfer = near.read(ours.all(), theirs.all())
        await within(asyncio.to_thread(begun.wait))
        (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "transfer-a-b")
        task.cancel()
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        await within(asyncio.wait([task]))
        assert ended.is_set()
        assert transfer.state is TransferState.CANCELLED
        assert isinstance(transfer.error, RequestCancelledError)


async def test_threads_that_were_closed() -> None:
    threads = Threads(1, "test")
    assert await within(threads.run(int, "5")) == 5
    await within(threads.close())
    with pytest.raises(ConnectionLostError, match="closed"):
        threads.run(int, "5")
