"""Requests at the door of one model: those that wait, and the time they may."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from dynamo.errors import OverloadedError, RequestCancelledError
from dynamo.frontend.overload import Admission, Reason, Refusal, Ticket
from dynamo.frontend.overload_config import OverloadConfig
from dynamo.runtime.context import Context
from dynamo.telemetry.metrics import FrontendMetrics

_FLEET_INTERVAL_S = 0.1  # how old the knowledge of the fleet may be: many requests come in that time

_MESSAGES = {
    Reason.TTFT: "too many requests are waiting: this one would wait too long",
    Reason.INFLIGHT: "too many requests are being answered",
    Reason.QUEUED_TOKENS: "too many prompts are waiting",
    Reason.WORKERS_BUSY: "all workers are busy",
    Reason.QUEUE_FULL: "too many requests are waiting to be let in",
    Reason.QUEUE_TIMEOUT: "there was too much to do for too long",
}


class Place:
    """That of a request that was let in."""

    __slots__ = ("_guard", "_ticket")

    def __init__(self, guard: "OverloadGuard", ticket: Ticket) -> None:
        self._guard = guard
        self._ticket = ticket

    def answered(self, prompt_tokens: int | None) -> None:
        """The first output is there."""
        self._guard.answered(self._ticket, prompt_tokens)


class OverloadGuard:
    """Lets in as many requests as the limits allow, and a few later; refuses the others."""

    def __init__(
        self, config: OverloadConfig, metrics: FrontendMetrics, model: str, fleet: Callable[[], tuple[int, bool]]
    ) -> None:
        """`fleet` says how many workers there are, and whether all of them are busy."""
        self._admission = Admission(config)
        self._timeout_s = config.admission_queue_timeout_s
        self._refused = metrics.refused
        self._queued = metrics.admission_queue.labels(model)
        self._fleet = fleet
        self._fleet_s = -_FLEET_INTERVAL_S
        self._waiting: dict[int, asyncio.Future[None]] = {}  # by id() of the ticket

    @asynccontextmanager
    async def admitted(self, body_bytes: int, context: Context) -> AsyncIterator[Place]:
        """A request within; raises OverloadedError, or RequestCancelledError for a client that does not wait."""
        now_s = time.monotonic()
        self._look_at_fleet(now_s)
        ticket = self._admission.arrive(body_bytes, now_s)
        if isinstance(ticket, Refusal):
            raise self._refusal(ticket.reason, ticket.retry_after_s)
        try:
            if ticket.admitted_s is None:
                await self._wait(ticket, context)
            yield Place(self, ticket)
        finally:
            self._admission.leave(ticket)
            self.let_in()

    def answered(self, ticket: Ticket, prompt_tokens: int | None) -> None:
        self._admission.answered(ticket, prompt_tokens, time.monotonic())
        self.let_in()

    def let_in(self) -> None:
        """Those who need not wait any longer."""
        if not self._waiting:
            return
        now_s = time.monotonic()
        self._look_at_fleet(now_s)
        for ticket in self._admission.admit(now_s):
            future = self._waiting[id(ticket)]
            if not future.done():
                future.set_result(None)

    async def _wait(self, ticket: Ticket, context: Context) -> None:
        future = self._waiting[id(ticket)] = asyncio.get_running_loop().create_future()
        self._queued.inc()
        unfollow = context.on_stop(lambda _: _fail(future, RequestCancelledError("the request was cancelled")))
        try:
            self.let_in()  # nobody may have told that workers are no longer busy
            async with asyncio.timeout(self._timeout_s) as timer:
                await future
        except TimeoutError:
            if not timer.expired():
                raise
            raise self._refusal(Reason.QUEUE_TIMEOUT, self._timeout_s) from None
        finally:
            unfollow()
            self._queued.dec()
            del self._waiting[id(ticket)]

    def _refusal(self, reason: Reason, retry_after_s: float) -> OverloadedError:
        self._refused.labels(reason.value).inc()
        return OverloadedError(_MESSAGES[reason], retry_after_s=retry_after_s)

    def _look_at_fleet(self, now_s: float) -> None:
        if now_s - self._fleet_s >= _FLEET_INTERVAL_S:
            self._fleet_s = now_s
            workers, busy = self._fleet()
            self._admission.set_fleet(workers=workers, busy=busy)


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
