"""What the manager wants of one tier below the host, done: in batches, a few at a time, reads before writes."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from dynamo.errors import DynamoError, InternalError, OverloadedError, UnavailableError
from dynamo.kvbm.effects import Fetch, Find, Forget, Write
from dynamo.kvbm.storage.base import Copy, Outcome, Storage, Stored
from dynamo.protocols.kvbm import StorageTier
from dynamo.runtime.background import in_background
from dynamo.runtime.backoff import Backoff

T = TypeVar("T")

logger = logging.getLogger(__name__)

BATCH_BLOCKS = 16
CALLS_MAX = 4  # reads and searches under way, and as many writes
CALL_TIMEOUT_S = 30.0
OPEN_TIMEOUT_S = 300.0  # of a large disk
_FINDS_MAX = 256  # that wait
_RETRY_MIN_S = 1.0
_RETRY_MAX_S = 30.0


class Outcomes(Protocol):
    """Who is told what has come of it all, at once and in the event loop; of BlockManager as much as that."""

    def written(self, tier: StorageTier, block: Stored, seconds: float) -> None: ...
    def write_failed(self, tier: StorageTier, block: Stored) -> None: ...
    def fetched(self, tier: StorageTier, copy: Copy, outcome: Outcome, seconds: float) -> None: ...
    def fetch_failed(self, tier: StorageTier, copy: Copy) -> None: ...
    def found(self, tier: StorageTier, lookup: int, count: int) -> None: ...
    def tier_opened(self, tier: StorageTier, blocks: Sequence[Stored]) -> None: ...
    def tier_lost(self, tier: StorageTier) -> None: ...


class TierRunner:
    """Drives one Storage. A tier that fails is lost until it can be opened again, which is tried ever more seldom."""

    def __init__(
        self,
        storage: Storage,
        outcomes: Outcomes,
        *,
        call_timeout_s: float = CALL_TIMEOUT_S,
        backoff: Backoff | None = None,
    ) -> None:
        """Closes `storage` with itself."""
        self.tier = storage.tier
        self._storage = storage
        self._outcomes = outcomes
        self._call_timeout_s = call_timeout_s
        self._backoff = backoff or Backoff(_RETRY_MIN_S, _RETRY_MAX_S)
        self._fetches: deque[Copy] = deque()  # the manager bounds these and the writes
        self._writes: deque[Copy] = deque()
        self._finds: deque[Find] = deque()
        self._forgets: dict[bytes, Stored] = {}  # by key
        self._busy: set[bytes] = set()  # keys of what is under way
        self._forgetting: set[int | None] = set()  # places
        self._reads_under_way = 0
        self._writes_under_way = 0
        self._calls: set[asyncio.Task[None]] = set()
        self.is_open = False
        self._said = ""  # the last complaint that passes by itself
        self._trouble: DynamoError | None = None  # the last, while it is not used for it
        self._opening: asyncio.Task[None] | None = None

    @property
    def reason(self) -> str:
        """Why it is not used; "": it is, or is being opened."""
        return "" if self._trouble is None else str(self._trouble)

    @property
    def queued(self) -> int:
        """Blocks that wait to be moved."""
        return len(self._fetches) + len(self._writes)

    def start(self) -> None:
        """Opens the tier, however often that has to be tried."""
        self._opening = in_background(self._open(), f"kvbm-open-{self.tier}")

    def do(self, effect: Write | Fetch | Find | Forget) -> None:
        match effect:
            case Fetch():
                self._fetches.append(effect.copy)
            case Write():
                self._writes.append(effect.copy)
            case Forget():
                self._forgets[effect.block.key] = effect.block
            case Find() if len(self._finds) < _FINDS_MAX:
                self._finds.append(effect)
            case Find():
                asyncio.get_running_loop().call_soon(self._outcomes.found, self.tier, effect.lookup, 0)

    def pump(self) -> None:
        """Starts what may start; after do(), as often as one likes."""
        if not self.is_open:
            self._refuse_all()
            return
        self._start_forget()
        while self._finds and self._reads_under_way < CALLS_MAX:
            self._start_read(self._find(self._finds.popleft()))
        while self._reads_under_way < CALLS_MAX and (batch := self._take(self._fetches)):
            self._start_read(self._read(batch))
        while not self._fetches and self._writes_under_way < CALLS_MAX and (batch := self._take(self._writes)):
            self._writes_under_way += 1
            self._start(self._write(batch))

    async def clear(self) -> None:
        """Raises DynamoError, also while the tier is not open: nobody could say what it will come back with."""
        self._check_open()
        await self._call(self._storage.clear())

    async def read_into(self, copies: Sequence[Copy]) -> list[Outcome]:
        """A read that the manager does not know of. Raises DynamoError."""
        self._check_open()
        return await self._call(self._storage.read(copies))

    async def close(self) -> None:
        self.is_open = False
        tasks = [*self._calls, *([self._opening] if self._opening is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._storage.close()

    # Opening, and losing

    async def _open(self) -> None:
        while True:
            try:
                blocks = await self._ended_well(self._storage.open(), OPEN_TIMEOUT_S)
                break
            except DynamoError as error:
                self._complain(error)
                await asyncio.sleep(self._backoff.next_s())
        if self._trouble is not None:
            logger.warning("the %s is back", self.tier)
        self._trouble, self._said = None, ""
        self.is_open = True
        self._outcomes.tier_opened(self.tier, blocks)
        self.pump()

    def _lose(self, error: DynamoError) -> None:
        """Once for all that fails by the same cause."""
        if not self.is_open:
            return
        self.is_open = False
        self._complain(error)
        self._outcomes.tier_lost(self.tier)
        self._refuse_all()
        self._opening = in_background(self._reopen(), f"kvbm-open-{self.tier}")

    async def _reopen(self) -> None:
        if self._calls:
            await asyncio.wait(self._calls)
        await asyncio.sleep(self._backoff.next_s())
        await self._open()

    def _complain(self, error: DynamoError) -> None:
        """Once, until it is another kind of error or the tier is back. Texts differ: some tell how long it took."""
        if type(error) is not type(self._trouble):
            logger.warning("the %s is not used: %s", self.tier, error)
        self._trouble = error

    def _refuse_all(self) -> None:
        """Nothing of what waits will be done."""
        while self._fetches:
            self._outcomes.fetch_failed(self.tier, self._fetches.popleft())
        while self._writes:
            self._outcomes.write_failed(self.tier, self._writes.popleft().block)
        while self._finds:
            self._outcomes.found(self.tier, self._finds.popleft().lookup, 0)
        self._forgets.clear()

    # Calls

    def _take(self, waiting: deque[Copy]) -> list[Copy]:
        """The next batch: what touches nothing that is under way, or about to be forgotten."""
        batch: list[Copy] = []
        passed: list[Copy] = []
        places = self._forgetting | {block.place for block in self._forgets.values()}
        while waiting and len(batch) < BATCH_BLOCKS:
            copy = waiting.popleft()
            block = copy.block
            blocked = block.key in self._busy or block.key in self._forgets
            blocked = blocked or (block.place is not None and block.place in places)
            if blocked:
                passed.append(copy)
            else:
                batch.append(copy)
                self._busy.add(block.key)
        waiting.extendleft(reversed(passed))
        return batch

    def _start_forget(self) -> None:
        ready = [block for block in self._forgets.values() if block.key not in self._busy]
        if not ready or self._forgetting:
            return
        for block in ready:
            del self._forgets[block.key]
            self._busy.add(block.key)
        self._forgetting = {block.place for block in ready}
        self._start(self._forget(ready))

    def _start_read(self, call: Coroutine[Any, Any, None]) -> None:
        self._reads_under_way += 1
        self._start(call)

    def _start(self, call: Coroutine[Any, Any, None]) -> None:
        task = in_background(call, f"kvbm-{self.tier}")
        self._calls.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        self.pump()

    async def _read(self, batch: Sequence[Copy]) -> None:
        started_s = time.monotonic()
        try:
            outcomes = await self._call(self._storage.read(batch))
        except DynamoError as error:
            self._release(batch)
            for copy in batch:
                self._outcomes.fetch_failed(self.tier, copy)
            self._lose(error)
            return
        finally:
            self._reads_under_way -= 1
        self._release(batch)
        seconds = time.monotonic() - started_s
        for copy, outcome in zip(batch, outcomes, strict=True):
            self._outcomes.fetched(self.tier, copy, outcome, seconds)

    async def _write(self, batch: Sequence[Copy]) -> None:
        started_s = time.monotonic()
        try:
            await self._call(self._storage.write(batch))
        except DynamoError as error:
            self._release(batch)
            for copy in batch:
                self._outcomes.write_failed(self.tier, copy.block)
            if isinstance(error, OverloadedError):
                self._say_full(str(error))
            else:
                self._lose(error)
            return
        finally:
            self._writes_under_way -= 1
        self._release(batch)
        self._said = ""
        for copy in batch:
            self._outcomes.written(self.tier, copy.block, time.monotonic() - started_s)

    async def _find(self, find: Find) -> None:
        count = 0
        try:
            count = await self._call(self._storage.find(find.keys))
        except DynamoError as error:
            self._lose(error)
        finally:
            self._reads_under_way -= 1
            self._outcomes.found(self.tier, find.lookup, count)

    async def _forget(self, blocks: Sequence[Stored]) -> None:
        try:
            await self._call(self._storage.forget(blocks))
        except DynamoError as error:
            self._lose(error)
        finally:
            self._forgetting = set()
            self._busy.difference_update(block.key for block in blocks)

    def _check_open(self) -> None:
        if not self.is_open:
            raise UnavailableError(f"the {self.tier} is not used: {self.reason or 'it is being opened'}")

    async def _call(self, call: Awaitable[T]) -> T:
        """As _ended_well, within the time that a call has. One that ends well ends what was wrong before."""
        result = await self._ended_well(call, self._call_timeout_s)
        self._backoff.reset()  # not when it is opened: one may open well, and fail whatever comes next
        return result

    async def _ended_well(self, call: Awaitable[T], timeout_s: float) -> T:
        """What comes of it. Raises DynamoError, whatever happens in there."""
        try:
            async with asyncio.timeout(timeout_s):
                return await call
        except TimeoutError:
            raise UnavailableError(f"it has not answered within {timeout_s:g} s") from None
        except DynamoError:
            raise
        except Exception as error:  # the manager's books have to close, whatever it was
            logger.exception("a defect in the storage of the %s", self.tier)
            raise InternalError(f"a defect: {error}") from error

    def _release(self, batch: Sequence[Copy]) -> None:
        self._busy.difference_update(copy.block.key for copy in batch)

    def _say_full(self, reason: str) -> None:
        """What it holds serves on. Said once, until a write succeeds."""
        if not self._said:
            self._said = reason
            logger.warning("the %s takes no more blocks: %s", self.tier, reason)
