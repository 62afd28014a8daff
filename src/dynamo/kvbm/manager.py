"""The block manager: which blocks are where, who may fill and read which slots, what is to be moved. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dynamo.errors import ConfigError, InvalidRequestError
from dynamo.kvbm.arrivals import Arrivals
from dynamo.kvbm.block import Block, BlockState
from dynamo.kvbm.changes import NameChanges
from dynamo.kvbm.counters import PoolCounters, TierCounters
from dynamo.kvbm.effects import Effect, Forget
from dynamo.kvbm.eviction import eviction_policy
from dynamo.kvbm.grants import Grants
from dynamo.kvbm.intake import Intake
from dynamo.kvbm.lookups import Lookup
from dynamo.kvbm.offload import offload_filter
from dynamo.kvbm.onboarding import Onboarding
from dynamo.kvbm.pool import HostPool
from dynamo.kvbm.room import Room
from dynamo.kvbm.sketch import FrequencySketch
from dynamo.kvbm.storage.base import Copy, Outcome, Stored
from dynamo.kvbm.tier import LowerTier, TierSpec
from dynamo.kvbm.writes import Offloading
from dynamo.protocols.kvbm import StorageTier, TierFigures

__all__ = ["BlockManager", "ManagerConfig", "TierSpec"]

_OFFLOADS = ("write-through", "on-evict")
_BUSY_SHARE = 8  # while blocks are under way up, so small a part of `writes_max` goes down
_RESERVE_SHARE = 32  # on-evict: so small a part of the slots is kept free, since a block's takes time to become so
_LOOKUPS_MAX = 1 << 16  # of a session


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerConfig:
    """One pool's."""

    slot_bytes: int
    policy: str = "tinylfu"  # of the host; the disk uses the same
    disk_filter: str = "none"
    disk_offload: str = "write-through"
    grant_slots: int = 64  # that an engine has at hand, as far as a sixteenth of the pool goes
    onboard_timeout_s: float = 1.0  # upper bound for waits that lookups ask for
    fetches_max: int = 64  # blocks under way from below at a time; lookups go first
    writes_max: int = 32  # blocks under way down at a time: onboarding goes before offloading
    queue_max: int = 4096  # blocks that wait to be written; the oldest are dropped, counted
    seed: int = 0


class BlockManager:
    """Decides; a shell does what `take_effects` says, in that order, and reports what came of it.

    Everything happens in the call that causes it, and takes time in proportion to the blocks it names.
    """

    def __init__(self, config: ManagerConfig, tiers: Sequence[TierSpec], slots: int = 0) -> None:
        """No tier is used before `tier_opened`. Raises ConfigError for names of policies that do not exist."""
        if config.disk_offload not in _OFFLOADS:
            raise ConfigError(f"offloading is one of {', '.join(_OFFLOADS)}, not {config.disk_offload!r}")
        self._config = config
        self._on_evict = config.disk_offload == "on-evict"
        self._below = sum(spec.capacity or 0 for spec in tiers)
        self._sketch = FrequencySketch(slots + self._below, config.seed)
        self._tiers = {spec.tier: LowerTier(spec, config.policy, self._sketch) for spec in tiers}
        self._effects: list[Effect] = []
        self._now_s = 0.0
        self.figures = PoolCounters(
            tiers={StorageTier.HOST: TierCounters()} | {tier: below.counters for tier, below in self._tiers.items()}
        )
        self._host = self.figures.tiers[StorageTier.HOST]
        self._build()
        self.add_slots(slots)

    def _build(self) -> None:
        """The parts, each of which knows those before it."""
        config, tiers, effects = self._config, self._tiers, self._effects
        admitted = offload_filter(config.disk_filter)
        self._pool = HostPool(eviction_policy(config.policy, self._sketch, 0))
        self._names = NameChanges(StorageTier.HOST)
        self._offloading = Offloading(
            self._pool, tiers, self.figures, effects, writes_max=config.writes_max, queue_max=config.queue_max
        )
        self._room = Room(
            self._pool, tiers, self._offloading, admitted, self._names, self.figures, on_evict=self._on_evict
        )
        self._intake = Intake(self._pool, self._names, self._offloading, admitted, on_evict=self._on_evict)
        self._grants = Grants(self._pool, self._room, effects, grant_slots=config.grant_slots)
        self._arrivals = Arrivals(tiers, self._room, effects, fetches_max=config.fetches_max)
        self._onboarding = Onboarding(self._pool, tiers, self._arrivals, self._intake, self.figures, effects)

    # memory and engines

    def add_slots(self, count: int) -> None:
        """Memory has grown: the next `count` slots exist now."""
        self._pool.grow(count)
        self._sketch.grow(len(self._pool.blocks) + self._below)

    def attach(self, session: int, *, fills: bool = True) -> None:
        """An engine is there; Grant effects keep it supplied, unless it only reads."""
        self._grants.attach(session, fills=fills)

    def detach(self, session: int) -> None:
        """Nobody writes or reads there any more: its slots, pins and lookups are free."""
        for lookup in self._grants.detach(session).lookups.values():
            self._onboarding.end(lookup)

    def commit(self, session: int, slot: int, block: Stored, now_s: float) -> None:
        """A granted slot is filled with this block. If there is one of its key already, the slot is free again."""
        filled = self._grants.take_back(self._grants.session(session), slot)
        filled.state = BlockState.COMPLETE
        self._now_s = now_s
        there = self._pool.registered.get(block.key)
        if there is not None:
            self._pool.give_back(filled)
            self._pool.touch(there)
            self._intake.used(block.key, now_s)
            return
        filled.key, filled.name = block.key, block.name
        self._host.stored_blocks += 1
        self._intake.register(filled, now_s)
        self._onboarding.committed(filled)

    def discard(self, session: int, slots: Sequence[int]) -> None:
        """Granted slots come back unfilled."""
        self._grants.give_back(self._grants.session(session), slots)

    def look_up(self, session: int, lookup: int, keys: Sequence[bytes], wait_s: float, now_s: float) -> None:
        """Answered at once with what is in host memory, and once more if there is more to wait for.

        `Answer.coming` of the first answer counts what is under way and, while an object store or peer is being
        asked, all it is asked for. The last answer has none coming.
        """
        owner = self._grants.session(session)
        if lookup in owner.lookups or len(owner.lookups) >= _LOOKUPS_MAX:
            raise InvalidRequestError(f"lookup {lookup} of session {session} is open already, or too many are")
        self._now_s = now_s
        deadline_s = now_s + min(wait_s, self._config.onboard_timeout_s)
        record = owner.lookups[lookup] = Lookup(
            session=session, id=lookup, keys=tuple(keys), deadline_s=deadline_s, is_counted=owner.fills
        )
        self._sketch.record(record.keys)
        self._find_on_host(record, now_s)
        if record.is_counted:
            self.figures.lookups += 1
            self._host.hits += record.ready
            self._host.misses += len(keys) - record.ready
        self._onboarding.begin(record, now_s)

    def _find_on_host(self, lookup: Lookup, now_s: float) -> None:
        registered, pin, used = self._pool.registered, self._pool.pin, self._intake.used
        blocks: list[Block] = []
        for key in lookup.keys:
            block = registered.get(key)
            if block is None:
                break
            pin(block)
            used(key, now_s)
            blocks.append(block)
        lookup.start(blocks)

    def release(self, session: int, lookups: Sequence[int], now_s: float) -> None:
        """Nobody reads what these lookups found any more, or waits for it."""
        owner = self._grants.session(session)
        if len(set(lookups)) != len(lookups) or not owner.lookups.keys() >= set(lookups):
            raise InvalidRequestError(f"not all of these lookups of session {session} are open, or not once each")
        self._now_s = now_s
        self._pool.rank()  # what came before is older than what was used until now
        for lookup in lookups:
            self._onboarding.end(owner.lookups.pop(lookup))

    # what came of effects

    def written(self, tier: StorageTier, block: Stored, seconds: float, now_s: float) -> None:
        """A Write is done. It took `seconds` from its start."""
        self._now_s = now_s
        self._room.copied(self._offloading.written(self._tiers[tier], block, seconds))

    def write_failed(self, tier: StorageTier, block: Stored, now_s: float) -> None:
        """A Write was not done; nobody reads its slot any more."""
        self._now_s = now_s
        self._room.copied(self._offloading.failed(self._tiers[tier], block.key, now_s))

    def fetched(self, tier: StorageTier, copy: Copy, outcome: Outcome, seconds: float, now_s: float) -> None:
        """A Fetch is done. It took `seconds` from its start.

        Of tiers without places `copy.block.name` is not the Fetch's, but what the header in the slot says.
        """
        self._now_s = now_s
        self._onboarding.fetched(self._tiers[tier], copy, outcome, seconds, now_s)

    def fetch_failed(self, tier: StorageTier, copy: Copy, now_s: float) -> None:
        """A Fetch was not done: the tier is in trouble. Nobody writes into its slot any more."""
        self._now_s = now_s
        self._onboarding.fetch_failed(self._tiers[tier], copy, now_s)

    def found(self, tier: StorageTier, lookup: int, count: int, now_s: float) -> None:
        """A Find (its `lookup` is the manager's own number) is done: so many, from the first on; 0 if it failed."""
        self._now_s = now_s
        self._onboarding.found(lookup, count, now_s)

    def tier_opened(self, tier: StorageTier, blocks: Sequence[Stored], now_s: float) -> None:
        """A tier can be used, and holds these blocks."""
        self._now_s = now_s
        below = self._tiers[tier]
        self._empty(below)
        for block in below.books.opened(blocks):
            self._effects.append(Forget(tier, block))
        for block in below.books:
            below.name_added(block.name)
        below.opened()

    def tier_lost(self, tier: StorageTier, now_s: float) -> None:
        """A tier cannot be used until it is opened again. What is under way there has to end as ever."""
        self._now_s = now_s
        below = self._tiers[tier]
        self._empty(below)
        below.lost()
        self._offloading.lost(tier)
        self._onboarding.lost(tier)

    def clear(self, tiers: Sequence[StorageTier], now_s: float) -> None:
        """These tiers hold nothing any more. For those below, the shell calls `Storage.clear` after this."""
        self._now_s = now_s
        for tier in tiers:
            if tier is StorageTier.HOST:
                self._onboarding.clear()
                for block in list(self._pool.registered.values()):
                    self._room.remove(block)
            elif tier in self._tiers:
                self._empty(self._tiers[tier])
                self._tiers[tier].books.void_writes()

    def drop(self, tier: StorageTier, block: Stored, now_s: float) -> bool:
        """Nobody has asked for this block, but it is not what was written. Whether it has left the tier with that."""
        self._now_s = now_s
        below = self._tiers[tier]
        if below.books.get(block.key) != block or below.books.remove(block.key) is None:
            return False
        below.name_removed(block.name)
        below.counters.checksum_failures += 1
        self._effects.append(Forget(tier, block))
        return True

    def tick(self, now_s: float) -> None:
        """Time has passed: lookups whose time is up are answered."""
        self._now_s = now_s
        self._onboarding.expire(now_s)

    def next_tick_s(self) -> float | None:
        """When `tick` is due next, if nothing else happens before."""
        times = (self._onboarding.next_deadline_s(), self._offloading.retry_at_s())
        return min((time for time in times if time is not None), default=None)

    def take_effects(self) -> list[Effect]:
        """What is to be done now, in this order. Empties it."""
        self._pool.rank()
        reserve = min(self._config.writes_max, len(self._pool.blocks) // _RESERVE_SHARE) if self._on_evict else 0
        self._grants.supply(self._now_s, reserve)
        writes_max = self._config.writes_max
        at_most = max(1, writes_max // _BUSY_SHARE) if self._onboarding.is_busy else writes_max
        self._offloading.pump(at_most, self._now_s)
        for names in (self._names, *(below.names for below in self._tiers.values())):
            change = names.take() if names is not None else None
            if change is not None:
                self._effects.append(change)
        effects = self._effects.copy()
        self._effects.clear()
        return effects

    # what there is

    def snapshot(self, tier: StorageTier) -> Iterator[Stored]:
        """All blocks that a tier is known to hold. Not while the manager is changed."""
        if tier is StorageTier.HOST:
            return (Stored(block.key, block.name) for block in self._pool.registered.values())
        return iter(self._tiers[tier].books if tier in self._tiers else ())

    def on_host(self, key: bytes) -> Stored | None:
        """The block of this key, if it can be read from host memory."""
        block = self._pool.registered.get(key)
        return None if block is None else Stored(block.key, block.name)

    @property
    def held_slots(self) -> int:
        """Slots of host memory that somebody fills or reads now."""
        return self._pool.held

    def tier_figures(self) -> list[TierFigures]:
        """Of the host and each tier below."""
        host_blocks, slots = len(self._pool.registered), len(self._pool.blocks)
        figures = [self._figures(StorageTier.HOST, self._host, "ready", host_blocks, slots, 0)]
        for tier, below in self._tiers.items():
            capacity = below.books.capacity or 0
            queued = self._offloading.queued(tier)
            figures.append(self._figures(tier, below.counters, below.state, len(below.books), capacity, queued))
        return figures

    def _figures(
        self, tier: StorageTier, counters: TierCounters, state: str, blocks: int, capacity: int, queued: int
    ) -> TierFigures:
        size = self._config.slot_bytes
        return TierFigures(
            tier=tier,
            state=state,
            blocks=blocks,
            used_bytes=blocks * size,
            capacity_bytes=capacity * size,
            hits=counters.hits,
            misses=counters.misses,
            stored_blocks=counters.stored_blocks,
            fetched_blocks=counters.fetched_blocks,
            evicted_blocks=counters.evicted_blocks,
            write_s=counters.write_s,
            read_s=counters.read_s,
            written_bytes=counters.stored_blocks * size,
            read_bytes=counters.fetched_blocks * size,
            checksum_failures=counters.checksum_failures,
            errors=counters.errors,
            queued=queued,
        )

    def _empty(self, below: LowerTier) -> None:
        for block in below.books.reset():
            below.name_removed(block.name)
