"""Telling one follower what comes to a pool's tiers and leaves them, as fast as it reads and no faster."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from dynamo.kvbm.connection import Connection
from dynamo.kvbm.effects import Change
from dynamo.kvbm.pool_shell import PoolShell
from dynamo.kvbm.storage.base import Stored
from dynamo.protocols.kvbm import Figures, PoolFigures, StorageTier, TierChanges
from dynamo.runtime.background import in_background
from dynamo.tokens import hash_array, hashes_to_bytes

TOLD_TIERS = (StorageTier.HOST, StorageTier.DISK)  # what object stores and peers hold, routers are not told
NAMES_MAX = 64 * 1024  # in a message
MERGE_S = 0.01  # for which changes are gathered
FIGURES_S = 1.0
WAITING_MAX = 1 << 20  # names, of a tier; one that is further behind is told all anew


class TierNews:
    """What a follower has not been told yet of one tier; changes that cancel each other are left out."""

    def __init__(self, tier: StorageTier, snapshot: Callable[[StorageTier], Iterable[Stored]]) -> None:
        """Begins with a full account, of what there is when it is taken."""
        self._tier = tier
        self._snapshot = snapshot
        self._stored: dict[int, None] = {}
        self._removed: dict[int, None] = {}
        self._anew = True

    def __bool__(self) -> bool:
        return self._anew or bool(self._stored or self._removed)

    def add(self, change: Change) -> None:
        if self._anew:
            return
        for name in change.removed:
            self._stored.pop(name, None)
            self._removed[name] = None
        for name in change.stored:
            self._removed.pop(name, None)
            self._stored[name] = None
        if len(self._stored) + len(self._removed) > WAITING_MAX:
            self._anew = True

    def take(self) -> Iterator[TierChanges]:
        """Messages, for as long as the follower reads; what is not taken is kept."""
        reset, self._anew = self._anew, False
        if reset:
            self._removed.clear()
            self._stored = {block.name: None for block in self._snapshot(self._tier)}
            if not self._stored:
                yield TierChanges(tier=self._tier, reset=True)
        while self._stored or self._removed:
            removed, stored = _taken(self._removed), _taken(self._stored)
            yield TierChanges(tier=self._tier, stored=stored, removed=removed, reset=reset)
            reset = False


def _taken(names: dict[int, None]) -> bytes:
    """The first of them, as they travel; they are taken out."""
    first = list(islice(names, NAMES_MAX))
    for name in first:
        del names[name]
    return hashes_to_bytes(hash_array(first))


class Follower:
    """One follower: its connection, and the pool of its owner as soon as there is one."""

    def __init__(self, owner: str, connection: Connection) -> None:
        self.owner = owner
        self._connection = connection
        self._pool: PoolShell | None = None
        self._news: dict[StorageTier, TierNews] = {}
        self._telling: asyncio.TimerHandle | None = None
        self._figures: asyncio.Task[None] | None = None

    def follow(self, pool: PoolShell, figures: Callable[[PoolShell], PoolFigures]) -> None:
        """From now on it is told of this pool; of another one than before by beginning anew."""
        if pool is self._pool:
            return
        self.close()
        self._pool = pool
        self._news = {tier: TierNews(tier, pool.manager.snapshot) for tier in TOLD_TIERS}
        pool.listeners.add(self)
        self._connection.on_reads = self._tell
        self._figures = in_background(self._tell_figures(pool, figures), "kvbm-figures")
        self._tell()

    def changed(self, change: Change) -> None:
        """As Listener."""
        if change.tier in self._news:
            self._news[change.tier].add(change)
            if self._telling is None:
                self._telling = asyncio.get_running_loop().call_later(MERGE_S, self._tell)

    def leave(self) -> None:
        """The engine is gone, and can have nothing of the pool any more."""
        self.close()
        for tier in TOLD_TIERS:
            self._connection.send(TierChanges(tier=tier, reset=True))

    def close(self) -> None:
        """Idempotent."""
        if self._pool is not None:
            self._pool.listeners.discard(self)
            self._pool = None
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        if self._figures is not None:
            self._figures.cancel()
            self._figures = None
        self._connection.on_reads = None

    def _tell(self) -> None:
        self._telling = None
        for news in self._news.values():
            if news and self._connection.reads:
                for message in news.take():
                    self._connection.send(message)
                    if not self._connection.reads:
                        return

    async def _tell_figures(self, pool: PoolShell, figures: Callable[[PoolShell], PoolFigures]) -> None:
        while True:
            if self._connection.reads:
                self._connection.send(Figures(pools=[figures(pool)]))
            await asyncio.sleep(FIGURES_S)
