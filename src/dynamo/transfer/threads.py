"""Threads for what blocks."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from dynamo.errors import ConnectionLostError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Threads:
    """So many at most, begun when they are first needed."""

    def __init__(self, count: int, name: str) -> None:
        """`name` is what the threads' names begin with."""
        self._closed = False
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)

    def run(self, function: Callable[[*Ts], T], *arguments: *Ts) -> "asyncio.Future[T]":
        """What the function returns, or raises, in one of them. Raises ConnectionLostError after close()."""
        return asyncio.wrap_future(self.submit(function, *arguments))

    def submit(self, function: Callable[[*Ts], T], *arguments: *Ts) -> "Future[T]":
        """The same for who may cancel it before it has its turn."""
        if self._closed:
            raise ConnectionLostError("the agent was closed")
        return self._executor.submit(function, *arguments)

    async def close(self) -> None:
        """Returns when all that was given to them has ended. Idempotent."""
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)
