"""Who a client is, by the key it shows."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from starlette.datastructures import Headers

from dynamo.errors import InvalidApiKeyError
from dynamo.frontend.api_keys import KeyEntry, key_digest
from dynamo.frontend.key_limits import KeyLimits


class Client(Protocol):
    """Whoever sends requests."""

    name: str  # for logs; empty where nobody asks

    def allows(self, model: str) -> bool:
        """Whether the model is there for this client."""
        ...

    def visit(self) -> AbstractContextManager[None]:
        """A request from its beginning to its end; raises RateLimitedError for one too many."""
        ...


class Keys(Protocol):
    """Knows clients."""

    def identify(self, headers: Headers) -> Client:
        """Raises InvalidApiKeyError for nobody."""
        ...


class Anybody:
    """Keys where none are needed, and the one Client of theirs."""

    name = ""

    def identify(self, headers: Headers) -> "Anybody":
        return self

    def allows(self, model: str) -> bool:
        return True

    def visit(self) -> AbstractContextManager[None]:
        return nullcontext()


class KeyHolder:
    """The client that has one of the keys."""

    def __init__(self, entry: KeyEntry, limits: KeyLimits) -> None:
        self.name = entry.name
        self.limits = limits
        self._models = None if entry.models is None else frozenset(entry.models)

    def allows(self, model: str) -> bool:
        return self._models is None or model in self._models

    @contextmanager
    def visit(self) -> Iterator[None]:
        self.limits.enter(time.monotonic())
        try:
            yield
        finally:
            self.limits.leave()


class KeyRing:
    """Keys that were written down, by the digest of each.

    How long a look-up takes says nothing about the keys that there are. What is compared are digests: one cannot choose
    a key whose digest comes closer and closer to another. And the dictionary compares not even those, but 64 bits that
    it makes of them with a secret of this process, before all of a digest that has the same.
    """

    def __init__(self, entries: Iterable[KeyEntry], refresh: Callable[["KeyRing"], None] = lambda _: None) -> None:
        """`refresh` is called before each look-up and may call use()."""
        self._refresh = refresh
        self._holders: dict[str, KeyHolder] = {}
        self.use(entries)

    def use(self, entries: Iterable[KeyEntry]) -> None:
        """These are the keys from now on. One that keeps its name keeps count of what it has used up."""
        limits = {holder.name: holder.limits for holder in self._holders.values()}
        now_s = time.monotonic()
        self._holders = {
            entry.digest(): KeyHolder(entry, _limits(entry, limits.get(entry.name), now_s)) for entry in entries
        }

    def identify(self, headers: Headers) -> KeyHolder:
        self._refresh(self)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise InvalidApiKeyError("this server needs an API key: send it as `Authorization: Bearer KEY`")
        holder = self._holders.get(key_digest(key.strip()))
        if holder is None:
            raise InvalidApiKeyError("this API key is not known here")
        return holder


def _limits(entry: KeyEntry, former: KeyLimits | None, now_s: float) -> KeyLimits:
    if former is None:
        return KeyLimits(entry.requests_per_minute, entry.concurrent_requests, now_s)
    former.change(entry.requests_per_minute, entry.concurrent_requests, now_s)
    return former
