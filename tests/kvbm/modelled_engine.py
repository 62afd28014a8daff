"""An engine and a service of the block manager whose blocks' contents can be looked at.

The engine computes half a block per request and step, shares prefixes, and preempts where it has too few blocks. Copies
are as late as fences allow, or at once. A block's content is its key once it is full.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from dynamo.errors import ConnectionLostError
from dynamo.kvbm.connector import Connector, Scheduled
from dynamo.kvbm.jobs import Copied, Done, Load, Save
from dynamo.kvbm.rank import Rank
from dynamo.protocols.kvbm import KEY_BYTES, Found, Report

RANKS = 2
GARBAGE = b"garbage"
GRANTS = 3


class Memory:
    """A service's: what each slot holds, by rank."""

    def __init__(self, pool: str, slots: int) -> None:
        self.pool = pool
        self.slots = [[GARBAGE] * RANKS for _ in range(slots)]

    def close(self) -> None:
        """Nothing is mapped."""


@dataclass
class Lookup:
    keys: list[bytes]
    found: Found | None = None
    pinned: list[int] = field(default_factory=list)


class Service:
    """And the client of it."""

    def __init__(self, slots: int) -> None:
        self.connected = True
        self.generation = 0
        self.silent = False  # answers nothing
        self.mappable = True
        self.read_by_ranks: Callable[[], set[int]] = set  # slots
        self.reports: list[Report] = []
        self._slots = slots
        self._next_lookup = 0
        self.start()

    def start(self) -> None:
        self.connected = True
        self.generation += 1
        self.memory = Memory(f"pool {self.generation}", self._slots)
        self.free = deque(range(self._slots))
        self.at_hand: list[int] = []
        self.filling: set[int] = set()
        self.committed: dict[bytes, int] = {}
        self.lookups: dict[int, Lookup] = {}
        self._grant()

    def die(self) -> None:
        self.connected = False
        self.at_hand = []
        self.lookups = {}

    @property
    def pool(self) -> str:
        return self.memory.pool

    @property
    def granted(self) -> int:
        return len(self.at_hand)

    def map(self) -> Memory:
        if not self.connected or not self.mappable:
            raise ConnectionLostError("nobody there")
        return self.memory

    def take_slots(self, count: int) -> list[int]:
        taken, self.at_hand = self.at_hand[:count], self.at_hand[count:]
        self.filling.update(taken)
        return taken

    def look_up(self, keys: bytes, wait_ms: int) -> int | None:
        assert keys
        if not self.connected:
            return None
        self._next_lookup += 1
        split = [keys[at : at + KEY_BYTES] for at in range(0, len(keys), KEY_BYTES)]
        self.lookups[self._next_lookup] = Lookup(split)
        return self._next_lookup

    def answer(self, lookup: int) -> Found | None:
        return self.lookups[lookup].found if lookup in self.lookups else None

    def poll(self, timeout_s: float = 0.0) -> None:
        if self.connected and not self.silent:
            for number in list(self.lookups):
                self.reply(number, all_of_it=True)
            self._grant()

    def reply(self, number: int, *, all_of_it: bool) -> None:
        """In two parts, as if the second half came from a disk."""
        lookup = self.lookups[number]
        if lookup.found is not None and not lookup.found.coming:
            return
        here: list[int] = []
        for key in lookup.keys:
            if key not in self.committed:
                break
            here.append(self.committed[key])
        have = len(lookup.pinned)
        if here[:have] != lookup.pinned:  # evicted and back elsewhere: cannot be, they are pinned
            raise AssertionError("a pinned block was moved")
        now = here if all_of_it else here[: max(have, len(here) // 2)]
        lookup.pinned = now
        lookup.found = Found(number, list(now), len(here) - len(now), [len(now), 0, 0, 0])

    def release(self, lookups: list[int]) -> None:
        for lookup in lookups:
            pinned = set(self.lookups.pop(lookup).pinned)
            for other in self.lookups.values():
                pinned -= set(other.pinned)
            assert not pinned & self.read_by_ranks(), "a block may be evicted while it is read"

    def commit(self, slots: list[int], keys: bytes, names: bytes) -> None:
        assert self.connected
        assert len(keys) == KEY_BYTES * len(slots)
        assert len(names) == 8 * len(slots)
        for at, slot in enumerate(slots):
            key = keys[at * KEY_BYTES : (at + 1) * KEY_BYTES]
            assert self.memory.slots[slot] == [key] * RANKS, "what is stored under a key is something else"
            self.filling.remove(slot)
            if key in self.committed:
                self.free.append(slot)
            else:
                self.committed[key] = slot
        self._grant()

    def discard(self, slots: list[int]) -> None:
        assert self.connected
        self.filling.difference_update(slots)
        self.free.extend(slots)

    def report(self, report: Report) -> None:
        self.reports.append(report)

    def close(self) -> None:
        self.die()

    def store(self, key: bytes) -> None:
        """Another engine's."""
        if self.free and key not in self.committed:
            slot = self.committed[key] = self.free.popleft()
            self.memory.slots[slot] = [key] * RANKS

    def evict(self) -> None:
        """All that nobody reads."""
        pinned = {slot for lookup in self.lookups.values() for slot in lookup.pinned}
        for key, slot in list(self.committed.items()):
            if slot not in pinned:
                del self.committed[key]
                self.memory.slots[slot] = [GARBAGE] * RANKS
                self.free.append(slot)

    def check(self) -> None:
        """Every slot is in one place."""
        if not self.connected:
            return
        places = [*self.free, *self.at_hand, *self.filling, *self.committed.values()]
        assert sorted(places) == list(range(self._slots))

    def _grant(self) -> None:
        while self.free and len(self.at_hand) < GRANTS:
            self.at_hand.append(self.free.popleft())


class ModelledCopier:
    """Copies when it has to, or at once."""

    def __init__(self, rank: int, cache: list[bytes], memory: Memory) -> None:
        self._rank = rank
        self._cache = cache
        self._memory = memory
        self.eager = False
        self._jobs: deque[Save | Load] = deque()
        self._done: list[Copied] = []

    def save(self, job: Save) -> None:
        if self.eager:
            self._copy(job)
        else:
            self._jobs.append(job)

    def load(self, job: Load) -> None:
        for block in job.blocks:
            self._cache[block] = GARBAGE
        self._jobs.append(job)

    def fence(self, jobs: Sequence[int]) -> None:
        while any(job.id in jobs for job in self._jobs):
            self.progress()

    def progress(self) -> None:
        """One job."""
        if self._jobs:
            self._copy(self._jobs.popleft())

    def reads(self, pool: str) -> set[int]:
        """Of its slots."""
        if pool != self._memory.pool:
            return set()
        return {slot for job in self._jobs if isinstance(job, Load) for slot in job.slots}

    def _copy(self, job: Save | Load) -> None:
        for block, slot in zip(job.blocks, job.slots, strict=True):
            if isinstance(job, Save):
                self._memory.slots[slot][self._rank] = self._cache[block]
            else:
                self._cache[block] = self._memory.slots[slot][self._rank]
        self._done.append(Copied(job.id, ok=True, seconds=0.001))

    def take_done(self) -> list[Copied]:
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        while self._jobs:
            self.progress()


@dataclass(eq=False)
class Request:
    """Of so many half blocks; two with the same first tokens share blocks."""

    request_id: str
    tokens: list[int]
    blocks: list[int] = field(default_factory=list)
    computed: int = 0  # halves
    loading: int = 0  # ranks that have not loaded yet
    broken: bool = False  # it could not be loaded

    def keys(self, start: int, end: int) -> list[bytes]:
        return [hashlib.sha256(repr(self.tokens[: 2 * at + 2]).encode()).digest() for at in range(start, end)]

    def names(self, start: int, end: int) -> list[int]:
        return list(range(start, end))

    def key(self, at: int) -> bytes:
        return self.keys(at, at + 1)[0]

    @property
    def loadable(self) -> int:
        return (len(self.tokens) - 1) // 2


class Engine:
    """A scheduler after vLLM's, as far as connectors notice."""

    def __init__(self, service: Service, blocks: int) -> None:
        self.now_s = 0.0
        self.service = service
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.loaded_blocks = 0
        self.caches = [[GARBAGE] * blocks for _ in range(RANKS)]
        self.copiers: list[ModelledCopier | None] = [None] * RANKS
        self.connector = Connector(service, lambda: self.now_s, ranks=RANKS, onboard_timeout_ms=1000, lookup_wait_s=0.0)
        self.ranks = [Rank(service.map, self._copier(rank), lambda: self.now_s) for rank in range(RANKS)]
        service.read_by_ranks = self._read_slots
        self._aborted_loads: list[Request] = []
        self._free = deque(range(blocks))
        self._users = [0] * blocks
        self._cached: dict[bytes, int] = {}
        self._hash: dict[int, bytes] = {}

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.running or self._aborted_loads or self.connector.busy)

    def add(self, request: Request) -> None:
        self.connector.add(request)
        self.waiting.append(request)

    def abort(self, request: Request) -> None:
        self._finish(request)

    def step(self) -> None:
        given: list[int] = []
        batch, preempted = self._schedule_running(given)
        if not preempted:
            self._schedule_waiting(batch, given)
        scheduled = [Scheduled(each.request_id, each.computed // 2, partial(list, each.blocks)) for each in batch]
        step = self.connector.step(scheduled, given)
        for rank in self.ranks:
            rank.begin(step)
        for request in batch:
            self._compute(request)
        self._collect()
        for request in [request for request in self.running if request.computed == len(request.tokens)]:
            self._finish(request)

    def _read_slots(self) -> set[int]:
        pool = self.service.pool
        return {slot for copier in self.copiers if copier is not None for slot in copier.reads(pool)}

    def _copier(self, rank: int) -> Callable[[Memory], ModelledCopier]:
        def make(memory: Memory) -> ModelledCopier:
            copier = self.copiers[rank] = ModelledCopier(rank, self.caches[rank], memory)
            return copier

        return make

    def _schedule_running(self, given: list[int]) -> tuple[list[Request], bool]:
        """And whether some had to be preempted: nothing new begins then."""
        preempted = False
        batch: list[Request] = []
        for request in list(self.running):
            while request.computed % 2 == 0 and not self._free and request in self.running:
                preempted = True
                victim = self.running[-1]
                self._preempt(victim)
                if victim in batch:
                    batch.remove(victim)
            if request in self.running:
                if request.computed % 2 == 0:
                    given += self._allocate(request, 1)
                self._schedule(request, batch)
        return batch, preempted

    def _schedule_waiting(self, batch: list[Request], given: list[int]) -> None:
        for request in list(self.waiting):
            if request.loading:
                continue
            if request.blocks:
                self._check_loaded(request)
                if not self._free:
                    if not self.running:
                        self._drop(request)
                    continue
                given += self._allocate(request, 1)
                self.connector.allocated(request.request_id, request.blocks, 0)
            else:
                local = self._local(request)
                load = self.connector.find(request.request_id, len(local), request.loadable)
                if load is None:
                    continue
                assert not (request.broken and load), "what cannot be loaded is loaded again and again"
                assert len(local) + load <= request.loadable
                if len(self._free) - sum(not self._users[block] for block in local) < (load or 1):
                    continue
                for block in local:
                    self._take(block)
                request.blocks = list(local)
                request.computed = 2 * len(local)
                fresh = self._allocate(request, load or 1)
                self.connector.allocated(request.request_id, request.blocks, load)
                if load:
                    request.loading = RANKS
                    request.computed = 2 * len(request.blocks)  # vLLM says so already now
                    self.loaded_blocks += load
                    continue
                given += fresh
            self.waiting.remove(request)
            self.running.append(request)
            self._schedule(request, batch)

    def _schedule(self, request: Request, batch: list[Request]) -> None:
        """vLLM shares a block from when it is scheduled to become full."""
        batch.append(request)
        if request.computed % 2:
            at = request.computed // 2
            self._share(request.key(at), request.blocks[at])

    def _check_loaded(self, request: Request) -> None:
        """They are computed now, and others may share them."""
        request.computed = 2 * len(request.blocks)
        for at, block in enumerate(request.blocks):
            for cache in self.caches:
                assert cache[block] == request.key(at), "something else was loaded"
            self._share(request.key(at), block)

    def _compute(self, request: Request) -> None:
        at = request.computed // 2
        for cache in self.caches:
            for before, block in enumerate(request.blocks[:at]):
                assert cache[block] == request.key(before), "a block was overwritten under a request"
            cache[request.blocks[at]] = request.key(at) if request.computed % 2 else b"half of " + request.key(at)
        request.computed += 1

    def _collect(self) -> None:
        done = Done()
        for rank in self.ranks:
            loaded, broken = rank.collect(), rank.take_broken_blocks()
            if ended := rank.take_done():
                done.merge(ended)
            for request in [*self.waiting, *self._aborted_loads]:
                if request.request_id in loaded:
                    request.loading -= 1
                    request.broken |= bool(broken & set(request.blocks))
        self.connector.done(done)
        for request in [each for each in self._aborted_loads if not each.loading]:
            self._aborted_loads.remove(request)
            self._drop(request)
        for request in self.waiting:
            if not request.loading and request.broken:
                self._drop(request)

    def _finish(self, request: Request) -> None:
        self.connector.finished(request.request_id, request.computed // 2, request.blocks)
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        if request.loading:
            self._aborted_loads.append(request)
        else:
            self._drop(request)

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._drop(request)
        self.waiting.appendleft(request)

    def _local(self, request: Request) -> list[int]:
        blocks = []
        for key in request.keys(0, request.loadable):
            if key not in self._cached:
                break
            blocks.append(self._cached[key])
        return blocks

    def _share(self, key: bytes, block: int) -> None:
        if key not in self._cached:
            self._cached[key] = block
            self._hash[block] = key

    def _allocate(self, request: Request, count: int) -> list[int]:
        blocks = [self._free.popleft() for _ in range(count)]
        for block in blocks:
            if block in self._hash:
                del self._cached[self._hash.pop(block)]
            self._users[block] = 1
        request.blocks += blocks
        return blocks

    def _take(self, block: int) -> None:
        if not self._users[block]:
            self._free.remove(block)
        self._users[block] += 1

    def _drop(self, request: Request) -> None:
        for block in reversed(request.blocks):
            self._users[block] -= 1
            if not self._users[block]:
                self._free.append(block)
        request.blocks = []
        request.computed = 0
