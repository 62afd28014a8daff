"""A transfer under way, as its caller sees it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator
from enum import StrEnum
from typing import Any

from dynamo.errors import DynamoError, InternalError, RequestCancelledError
from dynamo.runtime.context import Context
from dynamo.transfer.job import Control, Job

logger = logging.getLogger(__name__)


class TransferState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Transfer:
    """Await it for its end: it raises the DynamoError that ended it before. It begins by itself.

    Once it has ended, in whatever way, it moves no more bytes: the memory is the caller's again. But a peer that hangs,
    or that the connection to was lost, may yet take in what was on its way to it.
    """

    def __init__(self, size_bytes: int, control: Control) -> None:
        """For Agent: it has ended, unless it is given to run()."""
        self.size_bytes = size_bytes
        self.backend = ""  # which it goes by; empty as long as none was found
        self._control = control
        self._context: Context | None = None
        self._jobs: list[Job] = []
        self._task: asyncio.Task[None] | None = None
        self._error: DynamoError | None = None

    @property
    def state(self) -> TransferState:
        if self._task is not None and not self._task.done():
            return TransferState.RUNNING
        if self._error is None:
            return TransferState.DONE
        cancelled = isinstance(self._error, RequestCancelledError)
        return TransferState.CANCELLED if cancelled else TransferState.FAILED

    @property
    def done_bytes(self) -> int:
        """So many have been moved for certain."""
        return sum(job.done_bytes for job in self._jobs)

    @property
    def error(self) -> DynamoError | None:
        """What has ended it before its end."""
        return self._error

    def cancel(self) -> None:
        """Asks for an early end, which is there when the transfer has been awaited. Idempotent."""
        self._control.cancelled.set()
        if self._context is not None:
            self._context.kill()

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()

    def run(self, work: Coroutine[Any, Any, None], name: str, context: Context, on_end: Callable[[], None]) -> None:
        """Runs it in a task, which ends when `context` is killed."""
        self._context = context
        self._task = asyncio.create_task(self._run(work), name=name)
        self._task.add_done_callback(lambda _: on_end())

    def uses(self, backend: str, jobs: list[Job]) -> None:
        """What is being done."""
        self.backend = backend
        self._jobs = jobs

    def failed(self, error: DynamoError) -> None:
        """It has ended, before it was given to a task."""
        self._error = error

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except DynamoError as error:
            self._error = error
        except asyncio.CancelledError:  # with its event loop
            self._error = RequestCancelledError("the transfer's task was cancelled")
            raise
        except Exception as error:
            logger.exception("a transfer has failed in a way that it should not")
            self._error = InternalError(f"the transfer failed: {error!r}")

    async def _wait(self) -> None:
        if self._task is not None:
            try:
                await asyncio.shield(self._task)
            except asyncio.CancelledError:
                self.cancel()
                await asyncio.wait([self._task])
                raise
        if self._error is not None:
            raise self._error
