"""Discovery within one process."""

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

    def watch(self, prefix: str) -> Watch:
        watch = Watch(prefix, self._watches.remove)
        self._watches.append(watch)
        for key, value in self._entries.items():
            watch.publish(Put(key, value))
        return watch

    def _publish(self, event: Event) -> None:
        for watch in self._watches:
            watch.publish(event)


class MemoryRegistration:
    def __init__(self, store: MemoryStore, key: str) -> None:
        self._store = store
        self._key = key

    async def withdraw(self) -> None:
        self._store.delete(self._key)


class MemoryDiscovery:
    """One participant of a MemoryStore."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self._store = store or MemoryStore()
        self._registered: list[MemoryRegistration] = []
        self._watches: list[Watch] = []

    async def register(self, key: str, value: bytes) -> MemoryRegistration:
        self._store.put(key, value)
        registration = MemoryRegistration(self._store, key)
        self._registered.append(registration)
        return registration

    def watch(self, prefix: str) -> Watch:
        watch = self._store.watch(prefix)
        self._watches.append(watch)
        return watch

    async def close(self) -> None:
        for registration in self._registered:
            await registration.withdraw()
        for watch in self._watches:
            watch.close()
