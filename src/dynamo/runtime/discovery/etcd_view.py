"""What the watchers of a process have been told, compared with what etcd says. Pure."""

from collections.abc import Mapping, Set

from dynamo.runtime.discovery.base import Delete, Event, Put


class EtcdView:
    """Gives the events that make a watcher's picture agree with etcd's."""

    def __init__(self) -> None:
        self._told: dict[str, bytes] = {}
        self._doubting = False
        self._missing: set[str] = set()  # told, and not known to etcd, while in doubt

    def puts(self) -> list[Put]:
        """The whole picture, for a new watcher."""
        return [Put(key, value) for key, value in self._told.items()]

    def apply(self, event: Event) -> list[Event]:
        """A change that etcd reports."""
        if isinstance(event, Delete):
            return self._forget({event.key})
        self._missing.discard(event.key)
        if self._told.get(event.key) == event.value:
            return []
        self._told[event.key] = event.value
        return [event]

    def replace(self, entries: Mapping[str, bytes]) -> list[Event]:
        """All that etcd has now.

        Births come before deaths: where a successor has taken over meanwhile, somebody is always there.
        """
        born = [event for key, value in entries.items() for event in self.apply(Put(key, value))]
        return born + self._forget(self._told.keys() - entries.keys())

    def doubt(self) -> None:
        """From here on nobody is forgotten, until `settle()`: etcd has forgotten some who are well."""
        self._doubting = True

    def settle(self) -> list[Event]:
        """Whoever was in doubt has had the time to register anew."""
        self._doubting = False
        return self._forget(self._missing)

    def _forget(self, keys: Set[str]) -> list[Event]:
        if self._doubting:
            self._missing |= keys & self._told.keys()
            return []
        gone = [Delete(key) for key in keys if self._told.pop(key, None) is not None]
        self._missing = set()
        return list(gone)
