"""The half of an engine's connector that decides what is looked up, loaded and saved. Pure, and it knows no engine.

The engine calls it in each of its steps, in this order: `find` for requests that it would begin with, `allocated` for
those that it gave blocks, `step` for what its ranks are to do, `done` with what they have done. A block is one of the
engine's cache, by number; a slot is one of the pool's. Blocks of a request are counted from its first token on.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dynamo.kvbm.jobs import Done, Load, Step
from dynamo.kvbm.known_keys import KnownKeys
from dynamo.kvbm.saves import BlockSequence, Saves, SlotSource
from dynamo.protocols.kvbm import Found, Report

LOOKUPS_MAX = 64  # under way at a time
DEADLINE_MARGIN_S = 0.25  # after which an answer that was due is not waited for
_REPORT_INTERVAL_S = 1.0


class Client(SlotSource, Protocol):
    """dynamo.kvbm.client.ServiceClient, as far as it is used here."""

    def look_up(self, keys: bytes, wait_ms: int) -> int | None: ...

    def answer(self, lookup: int) -> Found | None: ...

    def poll(self, timeout_s: float = 0.0) -> None: ...

    def release(self, lookups: list[int]) -> None: ...

    def report(self, report: Report) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A request that takes part in the engine's next step."""

    request_id: str
    computed: int  # blocks that were full before that step
    blocks: Callable[[], Sequence[int]]  # all of its blocks; asked only when needed


@dataclass(slots=True)
class _Lookup:
    id: int
    pool: str  # the memory whose slots it finds
    generation: int
    start: int  # the block that it begins with
    end: int  # the one behind it
    deadline_s: float
    found: Found | None = None


@dataclass(slots=True)
class _Request:
    sequence: BlockSequence
    local: int = 0  # blocks that the engine's own cache had for it, when last asked
    lookup: _Lookup | None = None
    asked: bool = False  # there is nothing for it, or it has had it
    turn_by_s: float | None = None  # how long it waits until it may ask at all
    load_failed: bool = False
    allocated: bool = False
    ran: bool = False  # took part in a step with the blocks that it has


@dataclass(slots=True)
class _Loading:
    request: _Request
    lookup: _Lookup
    load: Load
    ranks: int = 0
    failed: bool = False
    seconds: float = 0.0


class Connector:
    """Of one engine. Its client's calls do not block, but for `poll`, which waits no longer than it is told."""

    def __init__(
        self,
        client: Client,
        now_s: Callable[[], float],
        *,
        ranks: int,
        onboard_timeout_ms: int,
        lookup_wait_s: float = 0.002,
    ) -> None:
        """`lookup_wait_s`: for how long a step may wait for answers, all lookups together."""
        self._client = client
        self._now_s = now_s
        self._ranks = ranks
        self._onboard_timeout_ms = onboard_timeout_ms
        self._lookup_wait_s = self._patience_s = lookup_wait_s
        self._requests: dict[str, _Request] = {}
        self._lookups = 0  # under way
        self._unanswered: _Lookup | None = None  # whose time is up: while it stays so, the service is as good as gone
        self._loading: dict[int, _Loading] = {}
        self._loads: list[Load] = []  # for the next step
        self._given: set[int] = set()  # blocks that the next step or its loads write anew
        self._generation = client.generation
        self._next_job = 0
        self._known = KnownKeys()
        self._saves = Saves(client, self._known, ranks)
        self._onboarded = (0, 0.0)  # blocks, seconds
        self._reported_s = self._now_s()

    @property
    def busy(self) -> bool:
        """Whether the engine has to make steps even if it has no requests."""
        return bool(self._loading) or self._saves.busy

    def add(self, sequence: BlockSequence) -> None:
        """A new request, before anything else about it."""
        self._requests[sequence.request_id] = _Request(sequence)

    def find(self, request_id: str, local: int, limit: int) -> int | None:
        """How many blocks after the first `local` ones, which the engine has, can be loaded: none from `limit` on.

        None: that is not known yet, ask again in the next step.
        """
        request = self._requests[request_id]
        if request.allocated:  # it has lost its blocks: preempted, or they could not be loaded
            request.allocated = request.ran = request.asked = False
            request.turn_by_s = None
        request.local = local
        if request.asked or request.load_failed or local >= limit:
            self._drop_lookup(request)
            return 0
        if request.lookup is not None and (not self._is_valid(request.lookup) or request.lookup.start > local):
            self._drop_lookup(request)
        if request.lookup is None:
            if self._lookups >= LOOKUPS_MAX:
                return self._wait_for_turn(request)
            if not self._look_up(request, limit):
                return 0
        return self._outcome(request)

    def allocated(self, request_id: str, blocks: Sequence[int], load: int) -> None:
        """The request was given these blocks; `load` of them, after the local ones, are to be loaded as found."""
        request = self._requests[request_id]
        request.allocated = True
        self._given.update(blocks[request.local :])
        lookup = request.lookup
        if not load or lookup is None or lookup.found is None:
            self._drop_lookup(request)
            return
        first = request.local - lookup.start
        slots = lookup.found.slots[first : first + load]
        end = request.local + len(slots)
        job = Load(self._take_id(), lookup.pool, request_id, tuple(blocks[request.local : end]), tuple(slots))
        self._loading[job.id] = _Loading(request, lookup, job)
        self._loads.append(job)
        request.lookup = None
        self._lookups -= 1

    def step(self, scheduled: Iterable[Scheduled], given: Iterable[int]) -> Step:
        """What the ranks are to do before the next step, which writes into blocks that were `given` anew."""
        self._client.poll()
        self._hangs()  # lets go of what it has answered too late
        self._patience_s = self._lookup_wait_s
        if self._client.generation != self._generation:
            self._generation = self._client.generation
            self._known.clear()
        self._given.update(given)
        saving = self._saves
        saving.save_left(self._given)
        for each in scheduled:
            request = self._requests.get(each.request_id)
            if request is None:
                continue
            # What it shares with a request that begins in the same step is computed only in that.
            if request.ran:
                saving.save(request.sequence, each.computed, each.blocks)
            request.ran = True
        saves = saving.take_jobs(self._take_id)
        step = Step(saves, saving.fences(self._given), tuple(self._loads))
        self._loads.clear()
        self._given.clear()
        self._report()
        return step

    def done(self, done: Done) -> None:
        """What the ranks have done."""
        for job, ranks in done.ranks.items():
            failed, seconds = job in done.failed, done.seconds.get(job, 0.0)
            loading = self._loading.get(job)
            if loading is None:
                self._saves.done(job, ranks, failed, seconds)
                continue
            loading.ranks += ranks
            loading.failed |= failed
            loading.seconds = max(loading.seconds, seconds)
            if loading.ranks >= self._ranks:
                del self._loading[job]
                self._loaded(loading)

    def finished(self, request_id: str, computed: int, blocks: Sequence[int]) -> None:
        """The request ends, in whatever phase. Its blocks, `computed` of them full, are free after this."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        self._drop_lookup(request)
        if request.ran:
            self._saves.leave(request.sequence, computed, blocks)
        else:
            self._saves.forget(request_id)

    def forget_left(self) -> None:
        """The cache may be wiped from now on: what no request holds is not saved any more."""
        self._saves.forget_left()

    def close(self) -> None:
        self._client.close()

    def _take_id(self) -> int:
        self._next_job += 1
        return self._next_job

    def _look_up(self, request: _Request, limit: int) -> bool:
        """False: there is no service, or none that answers."""
        if self._hangs():
            return False
        keys = b"".join(request.sequence.keys(request.local, limit))
        lookup = self._client.look_up(keys, self._onboard_timeout_ms)
        if lookup is None:
            return False
        deadline_s = self._now_s() + self._onboard_timeout_ms / 1e3 + DEADLINE_MARGIN_S
        request.lookup = _Lookup(lookup, self._client.pool, self._client.generation, request.local, limit, deadline_s)
        self._lookups += 1
        return True

    def _wait_for_turn(self, request: _Request) -> int | None:
        """Too many are being looked up. It waits no longer than for an answer; then it is computed."""
        now_s = self._now_s()
        if request.turn_by_s is None:
            request.turn_by_s = now_s + self._onboard_timeout_ms / 1e3
        if now_s < request.turn_by_s:
            return None
        request.asked = True
        return 0

    def _outcome(self, request: _Request) -> int | None:
        lookup = request.lookup
        assert lookup is not None
        lookup.found = found = self._answer(lookup.id)
        if not self._is_valid(lookup):
            self._drop_lookup(request)
            return 0
        if (found is None or found.coming) and self._now_s() < lookup.deadline_s and not self._hangs():
            return None
        if found is None and self._unanswered is None:
            self._unanswered, request.lookup = lookup, None
            self._lookups -= 1
            request.asked = True
            return 0
        end = lookup.start + len(found.slots if found is not None else ())
        for key in request.sequence.keys(end, min(end + 1, lookup.end)):
            self._known.discard(key)  # it was evicted: save it again, once it is computed
        if end > request.local:
            return end - request.local
        self._drop_lookup(request)
        request.asked = True
        return 0

    def _hangs(self) -> bool:
        """Whether the service leaves a lookup unanswered whose time is up. Nobody else waits for it then."""
        lookup = self._unanswered
        if lookup is None:
            return False
        if self._is_valid(lookup) and self._client.answer(lookup.id) is None:
            return True
        self._unanswered = None
        self._release(lookup)
        return False

    def _is_valid(self, lookup: _Lookup) -> bool:
        return self._client.connected and lookup.generation == self._client.generation

    def _answer(self, lookup: int) -> Found | None:
        """The latest there is. For the first one it waits a little."""
        client = self._client
        client.poll()
        found = client.answer(lookup)
        while found is None and self._patience_s > 0 and client.connected:
            begun_s = self._now_s()
            client.poll(self._patience_s)
            self._patience_s -= max(self._now_s() - begun_s, 1e-6)
            found = client.answer(lookup)
        return found

    def _drop_lookup(self, request: _Request) -> None:
        lookup, request.lookup = request.lookup, None
        if lookup is not None:
            self._lookups -= 1
            self._release(lookup)

    def _release(self, lookup: _Lookup) -> None:
        if self._is_valid(lookup):
            self._client.release([lookup.id])

    def _loaded(self, loading: _Loading) -> None:
        request, lookup, blocks = loading.request, loading.lookup, len(loading.load.blocks)
        self._release(lookup)
        request.asked = True
        if loading.failed:
            request.load_failed = True
            return
        self._onboarded = (self._onboarded[0] + blocks, self._onboarded[1] + loading.seconds)
        if lookup.generation == self._generation:
            self._known.add(request.sequence.keys(request.local, request.local + blocks))

    def _report(self) -> None:
        now_s = self._now_s()
        if now_s - self._reported_s < _REPORT_INTERVAL_S:
            return
        self._reported_s = now_s
        onboarded, offloaded = self._onboarded, self._saves.take_figures()
        if onboarded[0] or offloaded.blocks or offloaded.dropped:
            self._onboarded = (0, 0.0)
            self._client.report(
                Report(
                    onboarded_blocks=onboarded[0],
                    onboard_s=onboarded[1],
                    offloaded_blocks=offloaded.blocks,
                    offload_s=offloaded.seconds,
                    dropped_offloads=offloaded.dropped,
                )
            )
