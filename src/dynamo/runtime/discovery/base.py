"""Discovery: a small shared map of keys to values in which every entry lives as long as its owner.

Keys are paths ("instances/ns/component/endpoint/1a2b"); a key is written once, by one owner. Implementations are
tested by `dynamo.testing.discovery`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Put:
    """An entry is there (or has been all along)."""

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """An entry is gone: withdrawn, or its owner died."""

    key: str


Event = Put | Delete


class Registration(Protocol):
    """An entry that this process owns."""

    async def withdraw(self) -> None:
        """Removes the entry; idempotent."""
        ...


class Discovery(Protocol):
    """One backend, as one process sees it."""

    async def register(self, key: str, value: bytes) -> Registration:
        """Makes an entry visible until it is withdrawn, this backend is closed, or the process dies.

        Raises ConfigError when the backend cannot be written to, ValueError when the key is taken.
        """
        ...

    def watch(self, prefix: str) -> "Watch":
        """What is under `prefix` now, then every change."""
        ...

    async def close(self) -> None:
        """Withdraws all that was registered here and ends all watches."""
        ...


class Watch(AsyncIterator[Event]):
    """A stream of events. A slow reader sees the latest event of each key, so what waits here is bounded."""

    def __init__(self, prefix: str, on_close: Callable[["Watch"], None]) -> None:
        self.prefix = prefix
        self._pending: dict[str, Event] = {}
        self._changed = asyncio.Event()
        self._closed = False
        self._on_close = on_close

    def publish(self, event: Event) -> None:
        """Called by the backend; events of other prefixes are ignored."""
        if event.key.startswith(self.prefix):
            self._pending.pop(event.key, None)  # the new event goes to the end
            self._pending[event.key] = event
            self._changed.set()

    def close(self) -> None:
        """Ends the iteration; idempotent."""
        if not self._closed:
            self._closed = True
            self._changed.set()
            self._on_close(self)

    def take(self) -> list[Event]:
        """What waits to be read, without waiting for more."""
        events = list(self._pending.values())
        self._pending.clear()
        return events

    async def __anext__(self) -> Event:
        while not self._pending:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._pending.pop(next(iter(self._pending)))
