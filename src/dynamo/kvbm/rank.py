"""The half of an engine's connector at each rank: copies between the rank's part of the cache and the pool's memory."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from dynamo.errors import DynamoError
from dynamo.kvbm.jobs import Copied, Done, Load, Save, Step
from dynamo.kvbm.slot import HEADER_BYTES

logger = logging.getLogger(__name__)

RETRY_S = 10.0  # after a pool's memory could not be mapped: the engine's step waits for each attempt


@dataclass(frozen=True, slots=True)
class RankPart:
    """Where one rank's part of a block lies in its slot: ranks' parts follow each other behind the header."""

    rank: int
    size_bytes: int

    @property
    def start(self) -> int:
        return HEADER_BYTES + self.rank * self.size_bytes


class Pool(Protocol):
    """dynamo.kvbm.client.MappedPool, as far as it is used here."""

    @property
    def pool(self) -> str: ...

    def close(self) -> None: ...


class Copier(Protocol):
    """Copies for one rank, between its cache and one pool's memory. One thread calls it."""

    def save(self, job: Save) -> None:
        """Begins it. What was written into the blocks before is what is copied."""
        ...

    def load(self, job: Load) -> None:
        """Begins it. Nobody reads the blocks before it is done."""
        ...

    def fence(self, jobs: Sequence[int]) -> None:
        """What is written into the cache from now on comes after these jobs have read their blocks."""
        ...

    def take_done(self) -> list[Copied]:
        """What has ended since the last time."""
        ...

    def close(self) -> None:
        """Returns when nothing is read or written any more. Idempotent."""
        ...


PoolT = TypeVar("PoolT", bound=Pool)


class Rank(Generic[PoolT]):
    """Of one rank. A service that was started anew has other memory, which is mapped when it is first spoken of."""

    def __init__(
        self, map_pool: Callable[[], PoolT], copier: Callable[[PoolT], Copier], now_s: Callable[[], float]
    ) -> None:
        self._map_pool = map_pool
        self._make_copier = copier
        self._now_s = now_s
        self._pool: PoolT | None = None
        self._copier: Copier | None = None
        self._tried = ""  # the memory that was last asked for
        self._retry_s = float("-inf")
        self._loads: dict[int, Load] = {}
        self._failed: list[int] = []  # jobs that could not begin
        self._ended: list[Copied] = []  # of a copier that is no more
        self._done = Done()
        self._broken_blocks: set[int] = set()

    def map(self) -> None:
        """Maps the pool's memory, if there is a service."""
        try:
            pool = self._map_pool()
        except DynamoError as error:
            logger.warning("the block manager's memory cannot be had: %s", error)
            return
        finally:
            self._retry_s = self._now_s() + RETRY_S
        self._drop()
        self._pool, self._copier = pool, self._make_copier(pool)

    def begin(self, step: Step) -> None:
        """What comes before the engine's step."""
        for save in step.saves:
            if copier := self._copier_of(save.pool):
                copier.save(save)
            else:
                self._failed.append(save.id)
        if step.fences and self._copier is not None:
            self._copier.fence(step.fences)
        for load in step.loads:
            self._loads[load.id] = load
            if copier := self._copier_of(load.pool):
                copier.load(load)
            else:
                self._failed.append(load.id)

    def collect(self) -> set[str]:
        """The requests whose blocks are loaded, or could not be, since the last time."""
        ended = self._ended + (self._copier.take_done() if self._copier is not None else [])
        ended += [Copied(job, ok=False) for job in self._failed]
        self._ended, self._failed = [], []
        requests = set()
        for copied in ended:
            self._done.add(copied)
            load = self._loads.pop(copied.id, None)
            if load is not None:
                requests.add(load.request_id)
                if not copied.ok:
                    self._broken_blocks.update(load.blocks)
        return requests

    def take_broken_blocks(self) -> set[int]:
        """The blocks of loads that have failed."""
        blocks, self._broken_blocks = self._broken_blocks, set()
        return blocks

    def take_done(self) -> Done | None:
        """For the scheduler's half."""
        if not self._done.ranks:
            return None
        done, self._done = self._done, Done()
        return done

    def close(self) -> None:
        self._drop()

    def _copier_of(self, pool: str) -> Copier | None:
        if self._pool is not None and self._pool.pool == pool:
            return self._copier
        if pool != self._tried or self._now_s() >= self._retry_s:
            self._tried = pool
            self.map()
        return self._copier if self._pool is not None and self._pool.pool == pool else None

    def _drop(self) -> None:
        if self._copier is not None:
            self._copier.close()
            self._ended += self._copier.take_done()
        if self._pool is not None:
            self._pool.close()
        self._pool = self._copier = None
