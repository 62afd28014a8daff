"""What the watchers of a process have been told, compared with what etcd says. Pure."""

from collections.abc import Mapping

from dynamo.runtime.discovery.base import Delete, Event, Put


class EtcdView:
    """Gives the events that make a watcher's picture agree with etcd's."""

    def __init__(self) -> None:
        self._told: dict[str, bytes] = {}
        self._doubtful: set[str] = set()  # told, but missing from an etcd that has lost its data

    def puts(self) -> list[Put]:
        """The whole picture, for a new watcher."""
        return [Put(key, value) for key, value in self._told.items()]

    def apply(self, event: Event) -> list[Event]:
        """A change that etcd reports."""
        if isinstance(event, Delete):
            return self._forget({event.key})
        self._doubtful.discard(event.key)
        if self._told.get(event.key) == event.value:
            return []
        self._told[event.key] = event.value
        return [event]

    def replace(self, entries: Mapping[str, bytes], *, amnesia: bool) -> list[Event]:
        """All that etcd has now. With `amnesia` what is missing stays, in doubt, until `settle()`.

        Births come before deaths: where a successor has taken over meanwhile, somebody is always there.
        """
        born = [event for key, value in entries.items() for event in self.apply(Put(key, value))]
        missing = self._told.keys() - entries.keys()
        if amnesia:
            self._doubtful |= missing
        return born + self._forget(missing - self._doubtful)

    def settle(self) -> list[Event]:
        """Those in doubt have had their time to register anew."""
        return self._forget(self._doubtful.copy())

    def _forget(self, keys: set[str]) -> list[Event]:
        self._doubtful -= keys
        return [Delete(key) for key in keys if self._told.pop(key, None) is not None]
