"""One pool: its memory, its manager, and what the manager wants done."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from dynamo.errors import InvalidRequestError, NotFoundError
from dynamo.kvbm.arena import HostArena
from dynamo.kvbm.effects import Answer, Change, Effect, Grant
from dynamo.kvbm.manager import BlockManager, ManagerConfig, TierSpec
from dynamo.kvbm.slot import SlotHeader
from dynamo.kvbm.storage.base import Copy, Outcome, Stored
from dynamo.kvbm.tier_runner import TierRunner
from dynamo.kvbm.tiers import PoolTiers
from dynamo.protocols.kvbm import (
    KEY_BYTES,
    Commit,
    Discard,
    Found,
    Granted,
    LookUp,
    PoolFigures,
    PoolOptions,
    PoolSpec,
    Release,
    Reply,
    Report,
    StorageTier,
    TierFigures,
)
from dynamo.runtime.background import in_background
from dynamo.tokens import hashes_from_bytes

logger = logging.getLogger(__name__)

GROW_BYTES = 64 << 20  # at a time
MEMORY_RETRY_S = 10.0

EngineRequest = LookUp | Release | Commit | Discard | Report


class Listener(Protocol):
    """Who is told of changes in the pool."""

    def changed(self, change: Change) -> None: ...


class PoolShell:
    """Use it between start() and close()."""

    def __init__(
        self,
        spec: PoolSpec,
        options: PoolOptions,
        arena: HostArena,
        tiers: PoolTiers,
        *,
        memory_retry_s: float = MEMORY_RETRY_S,
    ) -> None:
        """Closes `tiers` with itself. Raises ConfigError for options that cannot be."""
        self.spec = spec
        self.options = options
        self.arena = arena
        self.listeners: set[Listener] = set()
        self._reported = Report()  # the sum of what engines have
        self._memory_retry_s = memory_retry_s
        config = ManagerConfig(
            slot_bytes=arena.slot_bytes,
            policy=options.policy,
            disk_filter=options.disk_filter,
            disk_offload=options.disk_offload,
            onboard_timeout_s=options.onboard_timeout_ms / 1000,
        )
        specs = [TierSpec(tier=storage.tier, capacity=storage.capacity) for storage in tiers.storages]
        self.manager = BlockManager(config, specs)
        self.runners = {storage.tier: TierRunner(storage, self) for storage in tiers.storages}
        self._release = tiers.release
        self._senders: dict[int, Callable[[Reply], None]] = {}  # by session
        self._next_session = 0
        self._loop = asyncio.get_running_loop()
        self._settling: asyncio.Handle | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._growing: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        self._growing = in_background(self._grow(), "kvbm-grow")
        for runner in self.runners.values():
            runner.start()

    async def close(self) -> None:
        self._closed = True
        for handle in (self._settling, self._ticking):
            if handle is not None:
                handle.cancel()
        if self._growing is not None:
            self._growing.cancel()
            await asyncio.wait([self._growing])
        await asyncio.gather(*(runner.close() for runner in self.runners.values()))
        self._release()

    # Engines

    def attach(self, send: Callable[[Reply], None], *, fills: bool = True) -> int:
        """A new session, which is told of its answers, and of its slots if it `fills` any, by `send`."""
        session = self._next_session
        self._next_session += 1
        self._senders[session] = send
        self.manager.attach(session, fills=fills)
        self._settle_soon()
        return session

    def mute(self, session: int) -> None:
        """Nobody is left who could be told anything; what it has is still used."""
        self._senders.pop(session, None)

    def detach(self, session: int) -> None:
        """Nobody writes to its slots or reads from them any more."""
        self.mute(session)
        self.manager.detach(session)
        self._settle_soon()

    def on_request(self, session: int, request: EngineRequest) -> None:
        """Raises InvalidRequestError for what this engine cannot mean."""
        now_s = self._loop.time()
        match request:
            case LookUp():
                keys = _keys(request.keys)
                self.manager.look_up(session, request.id, keys, request.wait_ms / 1000, now_s)
            case Release():
                self.manager.release(session, request.lookups, now_s)
            case Commit():
                for slot, block in zip(request.slots, _blocks(request), strict=True):
                    self.manager.commit(session, slot, block, now_s)
            case Discard():
                self.manager.discard(session, request.slots)
            case Report():
                self._reported = _sum(self._reported, request)
        self._settle()

    # Administration

    async def clear(self, tiers: Iterable[StorageTier]) -> None:
        """Raises DynamoError when a tier cannot be cleared."""
        tiers = list(tiers)
        self.manager.clear(tiers, self._loop.time())
        self._settle()
        for tier in tiers:
            if tier in self.runners:
                await self.runners[tier].clear()

    def drop(self, tier: StorageTier, block: Stored) -> bool:
        """A block that nobody has asked for is not what was written; whether it has left the tier with that."""
        dropped = self.manager.drop(tier, block, self._loop.time())
        self._settle()
        return dropped

    def figures(self, engines: int) -> PoolFigures:
        """Now; so many engines use it."""
        counters, reported = self.manager.figures, self._reported
        return PoolFigures(
            namespace=self.spec.namespace,
            description=self.spec.description,
            slot_bytes=self.arena.slot_bytes,
            block_tokens=self.spec.block_tokens,
            engines=engines,
            held_slots=self.manager.held_slots,
            tiers=[self._with_state(tier) for tier in self.manager.tier_figures()],
            lookups=counters.lookups,
            onboarded_blocks=reported.onboarded_blocks,
            onboard_s=reported.onboard_s,
            offloaded_blocks=reported.offloaded_blocks,
            offload_s=reported.offload_s,
            dropped_offloads=reported.dropped_offloads,
            dropped_writes=counters.dropped_writes,
            late_lookups=counters.late_lookups,
        )

    def _with_state(self, figures: TierFigures) -> TierFigures:
        """With the reason where it is not used, and what waits here too."""
        runner = self.runners.get(figures.tier)
        if runner is None:
            return figures
        state = figures.state if runner.is_open else runner.reason or "opening"
        return msgspec.structs.replace(figures, state=state, queued=figures.queued + runner.queued)

    def runner(self, tier: StorageTier) -> TierRunner:
        """Raises NotFoundError when the pool has no such tier."""
        if tier not in self.runners:
            raise NotFoundError(f"this pool has no {tier}")
        return self.runners[tier]

    # Outcomes, as tier runners tell them

    def written(self, tier: StorageTier, block: Stored, seconds: float) -> None:
        self.manager.written(tier, block, seconds, self._loop.time())
        self._settle_soon()

    def write_failed(self, tier: StorageTier, block: Stored) -> None:
        self.manager.write_failed(tier, block, self._loop.time())
        self._settle_soon()

    def fetched(self, tier: StorageTier, copy: Copy, outcome: Outcome, seconds: float) -> None:
        if outcome is Outcome.READ and copy.block.place is None:  # known by its key alone so far
            header = SlotHeader.read(self.arena.slot(copy.slot))
            assert header is not None, "storages verify what they read"
            copy = Copy(copy.slot, Stored(copy.block.key, header.name))
        self.manager.fetched(tier, copy, outcome, seconds, self._loop.time())
        self._settle_soon()

    def fetch_failed(self, tier: StorageTier, copy: Copy) -> None:
        self.manager.fetch_failed(tier, copy, self._loop.time())
        self._settle_soon()

    def found(self, tier: StorageTier, lookup: int, count: int) -> None:
        self.manager.found(tier, lookup, count, self._loop.time())
        self._settle_soon()

    def tier_opened(self, tier: StorageTier, blocks: Sequence[Stored]) -> None:
        self.manager.tier_opened(tier, blocks, self._loop.time())
        logger.info("the %s of %s is ready, with %d blocks", tier, self.spec.description, len(blocks))
        self._settle_soon()

    def tier_lost(self, tier: StorageTier) -> None:
        self.manager.tier_lost(tier, self._loop.time())
        self._settle_soon()

    # Effects

    def _settle_soon(self) -> None:
        """Once for all that happens in this turn of the event loop."""
        if self._settling is None and not self._closed:
            self._settling = self._loop.call_soon(self._settle)

    def _settle(self) -> None:
        """Has everything done that the manager wants, until it wants nothing more."""
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        while effects := self.manager.take_effects():
            for effect in effects:
                self._do(effect)
            for runner in self.runners.values():
                runner.pump()
        self._plan_tick()

    def _do(self, effect: Effect) -> None:
        match effect:
            case Answer():
                self._tell(effect.session, Found(effect.lookup, list(effect.slots), effect.coming, list(effect.tiers)))
            case Grant():
                self._tell(effect.session, Granted(list(effect.slots)))
            case Change():
                for listener in tuple(self.listeners):
                    listener.changed(effect)
            case _:
                self.runners[effect.tier].do(effect)

    def _tell(self, session: int, reply: Reply) -> None:
        if (send := self._senders.get(session)) is not None:
            send(reply)

    def _plan_tick(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        at_s = self.manager.next_tick_s()
        if at_s is not None and not self._closed:
            self._ticking = self._loop.call_at(at_s, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        self.manager.tick(self._loop.time())
        self._settle()

    # Memory

    async def _grow(self) -> None:
        """Until all of the pool is there."""
        step = max(1, GROW_BYTES // self.arena.slot_bytes)
        is_short = False
        while self.arena.ready < self.arena.slots:
            wanted = min(step, self.arena.slots - self.arena.ready)
            count = await asyncio.to_thread(self.arena.grow, wanted)
            if count:
                self.manager.add_slots(count)
                self._settle_soon()
            if count == wanted:
                continue
            if not is_short:
                is_short = True
                ready_gb, all_gb = (n * self.arena.slot_bytes / 1e9 for n in (self.arena.ready, self.arena.slots))
                logger.warning(
                    "memory is short: %s has %.2f GB of %.2f for now", self.spec.description, ready_gb, all_gb
                )
            await asyncio.sleep(self._memory_retry_s)
        if is_short:
            logger.warning("%s has all its memory now", self.spec.description)


def _keys(data: bytes) -> list[bytes]:
    if len(data) % KEY_BYTES:
        raise InvalidRequestError(f"keys are of {KEY_BYTES} bytes each")
    return [data[i : i + KEY_BYTES] for i in range(0, len(data), KEY_BYTES)]


def _blocks(commit: Commit) -> list[Stored]:
    keys = _keys(commit.keys)
    if len(commit.names) % 8 or not len(keys) == len(commit.slots) == len(commit.names) // 8:
        raise InvalidRequestError("a commit has a slot, a key and a name for each block")
    return [Stored(key, name) for key, name in zip(keys, hashes_from_bytes(commit.names), strict=True)]


def _sum(one: Report, other: Report) -> Report:
    return Report(
        onboarded_blocks=one.onboarded_blocks + other.onboarded_blocks,
        onboard_s=one.onboard_s + other.onboard_s,
        offloaded_blocks=one.offloaded_blocks + other.offloaded_blocks,
        offload_s=one.offload_s + other.offload_s,
        dropped_offloads=one.dropped_offloads + other.dropped_offloads,
    )
