"""What a request carries along: its identity, its deadline, and whether anybody still wants the answer."""

import asyncio
import random
import time
from collections.abc import Callable

Listener = Callable[["Context"], None]


class Context:
    """One request's context, shared by every stage that works on it.

    Stopping asks for an orderly end: the handler should finish its answer early. Killing means that nobody listens
    any more: the handler is cancelled. Both reach the remote side of a call that was given this context. Pausing means
    that the reader is behind: calls deliver nothing until it resumes, and the other side runs out of credit.
    """

    __slots__ = (
        "_flow_listeners",
        "_id",
        "_killed",
        "_listeners",
        "_paused",
        "_stopped",
        "deadline_s",
        "metadata",
        "traceparent",
    )

    def __init__(
        self,
        id: str | None = None,  # noqa: A002 - upstream's name
        metadata: dict[str, str] | None = None,
        *,
        deadline_s: float | None = None,
        traceparent: str | None = None,
    ) -> None:
        self._id = _sendable(id) if id else f"{random.getrandbits(128):032x}"
        self.metadata = metadata if metadata is not None else {}
        self.deadline_s = deadline_s  # on this process's time.monotonic(); None: no deadline
        self.traceparent = traceparent  # W3C Trace Context
        self._stopped = False
        self._killed = False
        self._paused = False
        self._listeners: list[Listener] = []
        self._flow_listeners: list[Listener] = []

    def id(self) -> str:
        return self._id

    def is_stopped(self) -> bool:
        """True once the request was stopped or killed."""
        return self._stopped

    def is_killed(self) -> bool:
        return self._killed

    def stop_generating(self) -> None:
        """Asks whoever works on the request to finish early; idempotent."""
        if not self._stopped:
            self._stopped = True
            _notify(self._listeners, self)

    def kill(self) -> None:
        """Gives the request up; idempotent."""
        if not self._killed:
            self._stopped = self._killed = True
            _notify(self._listeners, self)

    def is_paused(self) -> bool:
        return self._paused

    def pause(self) -> None:
        """Asks for no more items for now; idempotent."""
        if not self._paused:
            self._paused = True
            _notify(self._flow_listeners, self)

    def resume(self) -> None:
        """Takes a pause back; idempotent."""
        if self._paused:
            self._paused = False
            _notify(self._flow_listeners, self)

    def on_stop(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` at a stop and at a kill, at once if that has already been; returns how to take it back."""
        if self._stopped:
            listener(self)
        return _listen(self._listeners, listener)

    def on_flow(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` at each pause and resume, at once if paused already; returns how to take it back."""
        if self._paused:
            listener(self)
        return _listen(self._flow_listeners, listener)

    async def async_killed_or_stopped(self) -> bool:
        """Waits for a stop or a kill."""
        event = asyncio.Event()
        remove = self.on_stop(lambda _: event.set())
        try:
            await event.wait()
        finally:
            remove()
        return True

    async def resumed(self) -> None:
        """Returns when the context is not paused, or is stopped."""
        event = asyncio.Event()
        removals = (self.on_flow(lambda _: event.set()), self.on_stop(lambda _: event.set()))
        try:
            while self._paused and not self._stopped:
                event.clear()
                await event.wait()
        finally:
            for remove in removals:
                remove()

    def remaining_s(self) -> float | None:
        """Seconds until the deadline (negative once past); None without one."""
        return None if self.deadline_s is None else self.deadline_s - time.monotonic()

    def detached(self, id: str) -> "Context":  # noqa: A002 - upstream's name
        """A context of its own fate, with this one's deadline, trace and a copy of its metadata."""
        return Context(id, dict(self.metadata), deadline_s=self.deadline_s, traceparent=self.traceparent)


def _listen(listeners: list[Listener], listener: Listener) -> Callable[[], None]:
    listeners.append(listener)
    return lambda: listeners.remove(listener) if listener in listeners else None


def _notify(listeners: list[Listener], context: Context) -> None:
    for listener in tuple(listeners):
        listener(context)


def _sendable(request_id: str) -> str:
    """TypeError or ValueError for what could not travel as text."""
    if not isinstance(request_id, str):
        raise TypeError(f"a request id is a string, not {request_id!r}")
    request_id.encode()
    return request_id
