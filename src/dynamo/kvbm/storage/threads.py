"""Work that threads do for a tier: what was begun is waited for, whatever happens, for it is at memory of others."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from dynamo.transfer.threads import Threads

S = TypeVar("S")
T = TypeVar("T")


async def finish(future: "Future[T]") -> T:
    """What comes of it. Who is cancelled meanwhile goes when it has ended, or at once when it has not begun."""
    waiting = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        if not future.cancel():
            await asyncio.gather(waiting, return_exceptions=True)
        raise


async def together(works: Iterable[Awaitable[T]]) -> list[T]:
    """What comes of each. An error of one, or being cancelled, is heard of when all have ended, and not before."""
    results: list[T] = []
    for end in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(end, BaseException):
            raise end
        results.append(end)
    return results


async def spread(threads: Threads, count: int, work: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """What `work` makes of each item, in `count` threads at a time."""
    parts = [items[i::count] for i in range(min(count, len(items)))]
    futures = [threads.submit(_each, work, part) for part in parts]
    made = await together(map(finish, futures))
    return [made[i % count][i // count] for i in range(len(items))]


def _each(work: Callable[[S], T], items: Sequence[S]) -> list[T]:
    return [work(item) for item in items]
