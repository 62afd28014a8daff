"""Discovery within one process."""

from collections.abc import Callable

from dynamo.runtime.discovery.base import Delete, Event, Put, Watch


class MemoryStore:
    """The map that several MemoryDiscovery objects of a process share."""

    def __init__(self) -> None:
        self._entries: dict[str, bytes] = {}
        self._watches: list[Watch] = []

    def put(self, key: str, value: bytes) -> None:
        if key in self._entries:
            raise ValueError(f"{key} is already registered")
        self._entries[key] = value
        self._publish(Put(key, value))

    def delete(self, key: str) -> None:
        if self._entries.pop(key, None) is not None:
            self._publish(Delete(key))

    def watch(self, prefix: str, on_close: Callable[[Watch], None]) -> Watch:
        def closed(watch: Watch) -> None:
            self._watches.remove(watch)
            on_close(watch)

        watch = Watch(prefix, closed)
        self._watches.append(watch)
        for key, value in self._entries.items():
            watch.publish(Put(key, value))
        return watch

    def _publish(self, event: Event) -> None:
        for watch in self._watches:
            watch.publish(event)


class MemoryRegistration:
    def __init__(self, store: MemoryStore, key: str, on_withdraw: Callable[["MemoryRegistration"], None]) -> None:
        self._store = store
        self._on_withdraw = on_withdraw
        self._withdrawn = False
        self.key = key

    async def withdraw(self) -> None:
        if not self._withdrawn:  # afterwards the key may be another's
            self._withdrawn = True
            self._store.delete(self.key)
            self._on_withdraw(self)


class MemoryDiscovery:
    """One participant of a MemoryStore."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self._store = store or MemoryStore()
        self._registered: set[MemoryRegistration] = set()
        self._watches: set[Watch] = set()

    async def register(self, key: str, value: bytes) -> MemoryRegistration:
        self._store.put(key, value)
        registration = MemoryRegistration(self._store, key, self._registered.discard)
        self._registered.add(registration)
        return registration

    def watch(self, prefix: str) -> Watch:
        watch = self._store.watch(prefix, self._watches.discard)
        self._watches.add(watch)
        return watch

    async def close(self) -> None:
        for registration in tuple(self._registered):
            await registration.withdraw()
        for watch in tuple(self._watches):
            watch.close()
