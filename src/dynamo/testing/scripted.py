"""A handler that answers by a script and remembers what happened to it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Generic, TypeVar

from dynamo.runtime.context import Context

Req = TypeVar("Req")
Resp = TypeVar("Resp")


class Scripted(Generic[Req, Resp]):
    """Answers each request with the items that `script` makes for it; an exception among them is raised.

    `hang`: after the items the stream stays open, as that of an engine with more to say.
    """

    def __init__(self, script: Callable[[Req], Iterable[Resp | Exception]], *, hang: bool = False) -> None:
        self.requests: list[Req] = []
        self.contexts: list[Context] = []
        self.open = 0  # streams that have begun and neither ended nor been closed
        self.closed_early = 0
        self._script = script
        self._hang = hang

    async def __call__(self, request: Req, context: Context) -> AsyncIterator[Resp]:
        self.requests.append(request)
        self.contexts.append(context)
        self.open += 1
        ended = False
        try:
            for item in self._script(request):
                if isinstance(item, Exception):
                    ended = True
                    raise item
                yield item
            if self._hang:
                await asyncio.get_running_loop().create_future()
            ended = True
        finally:
            self.open -= 1
            self.closed_early += not ended


def answers(*items: Any) -> Callable[[Any], Iterable[Any]]:
    """A script that says the same to every request."""
    return lambda request: items
