"""Reading what stands in discovery, whoever has written it."""

from typing import Protocol, Self, TypeVar

import msgspec

from dynamo.runtime.discovery.base import Put

T = TypeVar("T")


class Entry(Protocol):
    """What processes tell each other through discovery."""

    @property
    def key(self) -> str:
        """Where it stands."""
        ...

    @classmethod
    def decode(cls, value: bytes) -> Self:
        """Raises ValueError for an entry of another kind or version."""
        ...


EntryT = TypeVar("EntryT", bound=Entry)


def read_entry(event: Put, kind: type[EntryT]) -> EntryT:
    """Raises ValueError for what is no entry of that kind, or not the one that stands under this key.

    With the latter, somebody's end would take what another has announced.
    """
    entry = kind.decode(event.value)
    if entry.key != event.key:
        raise ValueError("it belongs under another key")
    return entry


def decode_json(value: bytes, kind: type[T]) -> T:
    """Raises ValueError, and nothing else, for what is no `kind`."""
    try:
        return msgspec.json.decode(value, type=kind)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
