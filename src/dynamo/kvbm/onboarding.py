"""Lookups that wait for blocks from below."""

import heapq
from collections.abc import Mapping, Sequence
from itertools import count

from dynamo.kvbm.arrivals import Arrivals
from dynamo.kvbm.block import Block, BlockState
from dynamo.kvbm.counters import PoolCounters
from dynamo.kvbm.effects import Answer, Effect, Find, Forget
from dynamo.kvbm.intake import Intake
from dynamo.kvbm.lookups import TIER_INDEX, TIER_ORDER, Arrival, Lookup, Question
from dynamo.kvbm.pool import HostPool
from dynamo.kvbm.storage.base import Copy, Outcome
from dynamo.kvbm.tier import LowerTier
from dynamo.protocols.kvbm import StorageTier

LOOKUPS_MAX = 4096  # that wait at a time; more are answered with what is in host memory
_HOST = TIER_INDEX[StorageTier.HOST]


class Onboarding:
    """Finds out which blocks of a lookup are below, fetches them in order, and answers when it is over.

    A lookup is over when all blocks that could be had have come, or at its deadline. It ends early at the first block
    that turns out not to be there.
    """

    def __init__(
        self,
        pool: HostPool,
        tiers: Mapping[StorageTier, LowerTier],
        arrivals: Arrivals,
        intake: Intake,
        counters: PoolCounters,
        effects: list[Effect],
    ) -> None:
        self._pool = pool
        self._tiers = tiers
        self._known = [tier for tier in tiers.values() if tier.is_known]
        self._unknown = [tier for tier in reversed(TIER_ORDER) if tier in tiers and not tiers[tier].is_known]
        self._arrivals = arrivals
        self._intake = intake
        self._counters = counters
        self._effects = effects
        self._pending: dict[Lookup, None] = {}
        self._starved: dict[Lookup, None] = {}  # they wait for others' fetches to end, in this order
        self._deadlines: list[tuple[float, int, Lookup]] = []
        self._numbers = count()
        self._questions: dict[int, Question] = {}

    @property
    def is_busy(self) -> bool:
        """Whether blocks are under way that lookups may wait for."""
        return len(self._arrivals) > 0

    def next_deadline_s(self) -> float | None:
        """When the next lookup has waited long enough."""
        while self._deadlines and self._deadlines[0][2] not in self._pending:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def begin(self, lookup: Lookup, now_s: float) -> None:
        """A lookup that has what is in host memory is answered, and waits for more if there is more to be had."""
        if lookup.known == len(lookup.keys):
            self._answer(lookup)
            return
        lookup.to_ask = self._unknown.copy()
        if lookup.deadline_s <= now_s or len(self._pending) >= LOOKUPS_MAX:
            self._close(lookup)
            return
        self._pending[lookup] = None
        heapq.heappush(self._deadlines, (lookup.deadline_s, next(self._numbers), lookup))
        self._explore(lookup, now_s)
        self._proceed(lookup, now_s)
        if lookup in self._pending:
            self._answer(lookup)

    def end(self, lookup: Lookup) -> None:
        """Nobody waits for it or reads what it found. Its fetches go on: others may want the blocks."""
        self._leave(lookup)
        self._unpin(lookup, 0)

    def expire(self, now_s: float) -> None:
        """Answers lookups that have waited long enough with what has come."""
        while (deadline_s := self.next_deadline_s()) is not None and deadline_s <= now_s:
            lookup = heapq.heappop(self._deadlines)[2]
            lookup.is_late = True
            if lookup.asking is not None:
                question = self._questions[lookup.asking]
                self._tiers[question.tier].finds.took(now_s - question.asked_at_s, 1)
            if (arrival := self._arrivals.get(lookup.keys[lookup.ready])) is not None:
                self._tiers[arrival.tier].reads.overdue(now_s - arrival.begun_s)
            self._cut(lookup, lookup.ready)

    def found(self, number: int, blocks: int, now_s: float) -> None:
        """A tier that was asked has so many, from the first on."""
        question = self._questions.pop(number, None)
        if question is None:  # its lookup is over
            return
        lookup, tier = question.lookup, self._tiers[question.tier]
        lookup.asking = None
        tier.finds.took(now_s - question.asked_at_s, 1)
        self._plan(tier, min(blocks, len(lookup.keys) - lookup.known), lookup, now_s)
        self._explore(lookup, now_s)
        self._proceed(lookup, now_s)

    def fetched(self, tier: LowerTier, copy: Copy, outcome: Outcome, seconds: float, now_s: float) -> None:
        """A fetch has ended, with the block or without."""
        arrival = self._arrivals.end(copy.slot)
        tier.reads.took(seconds, max(arrival.beside, len(self._arrivals) + 1))
        tier.counters.read_s += seconds
        left = tier.books.end_read(copy.block.key, good=outcome is Outcome.READ)
        if outcome is Outcome.READ:
            tier.counters.fetched_blocks += 1
            self._keep(tier, arrival, copy, now_s)
        else:
            self._miss(tier, arrival, outcome, left=left)
            self._fail(arrival)
        self._feed(now_s)

    def fetch_failed(self, tier: LowerTier, copy: Copy, now_s: float) -> None:
        """A fetch has ended in an error of the tier: the block may be there."""
        arrival = self._arrivals.end(copy.slot)
        tier.books.end_read(copy.block.key, good=True)
        tier.reads.failed(now_s)
        tier.counters.errors += 1
        self._fail(arrival)
        self._feed(now_s)

    def committed(self, block: Block) -> None:
        """A block has come from an engine: who waits for it from below has it now."""
        arrival = self._arrivals.get(block.key)
        if arrival is None:
            return
        waiting, arrival.waiting = arrival.waiting, []
        for lookup, position in waiting:
            arrival.block.pins -= 1
            self._pool.pin(block)
            lookup.blocks[position] = block
            lookup.origins[position] = _HOST
        self._advance(waiting)

    def clear(self) -> None:
        """What is under way is not to be kept, and lookups end with what they have."""
        for lookup in list(self._pending):
            self._cut(lookup, lookup.ready)
        self._arrivals.refuse()

    def lost(self, tier: StorageTier) -> None:
        """A tier is not there any more: who has asked it need not wait for an answer."""
        for number, question in list(self._questions.items()):
            if question.tier is tier:
                del self._questions[number]
                question.lookup.asking = None
                question.lookup.is_complete = True
                self._close_if_complete(question.lookup)

    def _explore(self, lookup: Lookup, now_s: float) -> None:
        """Finds out what more there is, from the first unknown key on, as far as that is known or can be asked."""
        while lookup.known < len(lookup.keys) and not lookup.is_complete:
            before = lookup.known
            self._explore_host(lookup)
            for tier in self._known:
                self._explore_known(tier, lookup, now_s)
            if lookup.known == before and not self._passes_on(lookup, now_s):
                return

    def _explore_host(self, lookup: Lookup) -> None:
        for key in lookup.keys[lookup.known :]:
            block = self._pool.registered.get(key)
            if block is not None:
                self._pool.pin(block)
                lookup.kept.append(block)
            elif self._arrivals.get(key) is None:
                return
            lookup.sources.append(StorageTier.HOST)

    def _explore_known(self, tier: LowerTier, lookup: Lookup, now_s: float) -> None:
        if not tier.is_ready:
            return
        there = 0
        for key in lookup.keys[lookup.known :]:
            if key not in tier.books or key in self._pool.registered or tier.books.is_reading(key):
                break
            there += 1
        self._plan(tier, there, lookup, now_s)

    def _plan(self, tier: LowerTier, there: int, lookup: Lookup, now_s: float) -> None:
        """The next blocks come from this tier, as many as can be expected in time; if not all can, no more after."""
        if not there:
            return
        worth = tier.reads.fitting(there, len(self._arrivals), lookup.deadline_s - now_s, now_s)
        lookup.sources += [tier.tier] * worth
        lookup.is_complete = 0 < worth < there
        lookup.is_late |= lookup.is_complete

    def _passes_on(self, lookup: Lookup, now_s: float) -> bool:
        """Asks the next tier for the rest. Whether there is another one because this one is not to be asked."""
        if not lookup.to_ask or lookup.is_complete:
            return False
        tier = self._tiers[lookup.to_ask.pop()]
        rest = lookup.keys[lookup.known :]
        lookup.asked[tier.tier] = len(rest)
        budget_s = lookup.deadline_s - now_s
        if not tier.is_ready or not tier.finds.fitting(1, 0, budget_s, now_s) or tier.reads.is_paused(now_s):
            return True
        lookup.asking = number = next(self._numbers)
        self._questions[number] = Question(lookup=lookup, tier=tier.tier, asked_at_s=now_s)
        self._effects.append(Find(tier.tier, number, rest))
        return False

    def _proceed(self, lookup: Lookup, now_s: float) -> None:
        """Gets hold of the next blocks, until it has all that are known or has to wait for its turn."""
        self._starved.pop(lookup, None)
        while len(lookup.blocks) < lookup.known:
            key, position = lookup.keys[len(lookup.blocks)], len(lookup.blocks)
            block = self._pool.registered.get(key)
            if block is not None:
                self._pool.pin(block)
                lookup.take(block, _HOST)
                continue
            arrival = self._arrivals.get(key)
            if arrival is None:
                if self._arrivals.is_full:
                    self._starved[lookup] = None
                    break
                arrival = self._fetch(lookup.sources[position], key, now_s)
                if arrival is None:
                    self._cut(lookup, position)
                    return
            self._pool.pin(arrival.block)
            arrival.waiting.append((lookup, position))
            lookup.take(arrival.block, TIER_INDEX[arrival.tier])
        lookup.advance()
        self._close_if_complete(lookup)

    def _fetch(self, source: StorageTier, key: bytes, now_s: float) -> Arrival | None:
        if source is not StorageTier.HOST:
            return self._arrivals.fetch(source, key, now_s)
        for tier in self._known:  # it was in host memory or on its way there, and is not any more
            if tier.is_ready and key in tier.books:
                return self._arrivals.fetch(tier.tier, key, now_s)
        return None

    def _feed(self, now_s: float) -> None:
        """A fetch has ended: others get their turn."""
        for lookup in list(self._starved):
            if self._arrivals.is_full:
                return
            self._proceed(lookup, now_s)

    def _keep(self, tier: LowerTier, arrival: Arrival, copy: Copy, now_s: float) -> None:
        block = arrival.block
        if not tier.is_known and tier.takes_writes:
            tier.books.learn(copy.block)
        if not arrival.is_wanted or copy.block.key in self._pool.registered:
            self._pool.give_back(block)
            return
        block.key, block.name, block.state = copy.block.key, copy.block.name, BlockState.COMPLETE
        self._intake.register(block, now_s)
        self._advance(arrival.waiting)

    def _miss(self, tier: LowerTier, arrival: Arrival, outcome: Outcome, *, left: bool) -> None:
        if outcome is Outcome.CORRUPT:
            tier.counters.checksum_failures += 1
        if left:
            tier.name_removed(arrival.stored.name)
        if left or (outcome is Outcome.CORRUPT and tier.takes_writes):
            self._effects.append(Forget(tier.tier, arrival.stored))

    def _fail(self, arrival: Arrival) -> None:
        for lookup, position in arrival.waiting:
            self._cut(lookup, min(position, len(lookup.blocks)))
        self._pool.give_back(arrival.block)

    def _advance(self, waiting: Sequence[tuple[Lookup, int]]) -> None:
        for lookup, _ in waiting:
            lookup.advance()
            self._close_if_complete(lookup)

    def _close_if_complete(self, lookup: Lookup) -> None:
        if lookup in self._pending and not lookup.coming:
            self._close(lookup)

    def _cut(self, lookup: Lookup, end: int) -> None:
        """It has no more than so many blocks, of which it waits for those that are not ready."""
        self._unpin(lookup, end)
        if lookup.asking is not None:
            del self._questions[lookup.asking]
            lookup.asking = None
        lookup.advance()
        self._close_if_complete(lookup)

    def _close(self, lookup: Lookup) -> None:
        """It is over: this is all there is. It stays pinned."""
        self._counters.late_lookups += lookup.is_late
        if lookup.is_counted:
            self._count(lookup)
        self._leave(lookup)
        self._answer(lookup)

    def _leave(self, lookup: Lookup) -> None:
        self._pending.pop(lookup, None)
        self._starved.pop(lookup, None)
        if lookup.asking is not None:
            del self._questions[lookup.asking]
            lookup.asking = None
        kept, lookup.kept = lookup.kept, []
        self._pool.unpin(reversed(kept))

    def _unpin(self, lookup: Lookup, end: int) -> None:
        surplus = lookup.cut(end)
        for block in surplus:
            arrival = self._arrivals.get(block.key) if block.state is BlockState.PARTIAL else None
            if arrival is not None:
                arrival.waiting = [(of, position) for of, position in arrival.waiting if of is not lookup]
        self._pool.unpin(reversed(surplus))

    def _count(self, lookup: Lookup) -> None:
        """Each tier has what came from it. It misses what nobody had, and what it was asked for in vain."""
        missing = len(lookup.keys) - lookup.known
        for name, tier in self._tiers.items():
            hits = lookup.sources.count(name)
            tier.counters.hits += hits
            tier.counters.misses += missing if tier.is_known else lookup.asked.get(name, hits) - hits

    def _answer(self, lookup: Lookup) -> None:
        slots = tuple(block.index for block in lookup.blocks[: lookup.ready])
        on_host, on_disk, in_store, at_peer = lookup.counts
        tiers = (on_host, on_disk, in_store, at_peer)
        self._effects.append(Answer(lookup.session, lookup.id, slots, lookup.coming, tiers))
