"""Host memory and disk of a simulated worker: the real block manager, in simulated time, without a byte."""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from dynamo.engines.mocker.block_pool import BlockPool
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.engines.mocker.tiers_config import TiersConfig
from dynamo.engines.mocker.transfer_model import Link, TransferModel
from dynamo.kvbm.effects import Answer, Change, Effect, Fetch, Grant, Write
from dynamo.kvbm.manager import BlockManager, TierSpec
from dynamo.kvbm.storage.base import Outcome, Stored
from dynamo.protocols.kv_events import Tier
from dynamo.protocols.kvbm import KEY_BYTES, PoolFigures, StorageTier

_SESSION = 0
_TIERS = {StorageTier.HOST: Tier.HOST, StorageTier.DISK: Tier.DISK}


class TierObserver(Protocol):
    """Is told what lies below the device."""

    def tier_changed(self, tier: Tier, stored: Sequence[int], removed: Sequence[int]) -> None:
        """These blocks, by sequence hash, have come to a tier, and these have left it."""
        ...


@dataclass(frozen=True, slots=True)
class Onboarded:
    """What has come for a sequence that waited: the next blocks that it lacked, by where they were found."""

    sequence: SequenceState
    host: int
    disk: int


@dataclass(slots=True)
class _Direction:
    """Copies of one kind have it one after the other."""

    model: TransferModel
    block_size: int  # tokens
    link: Link

    def begin(self, blocks: int, now_s: float) -> float:
        """When a copy of so many blocks ends that begins now."""
        return self.model.begin(blocks * self.block_size, now_s, self.link)


class Tiers:
    """Keeps what the device has computed and finds it again. Its time is what advance() was told last.

    A full block is copied to host memory when the step is over that computed it (or later, as slots are granted, unless
    the device has given it up by then). Whose next blocks lie here waits until they have been copied back.
    """

    def __init__(
        self, config: TiersConfig, pool: BlockPool, block_size: int, observer: TierObserver | None = None
    ) -> None:
        """`pool`: the device's, of blocks of `block_size` tokens."""
        self.observer = observer  # may come later, while nothing is stored
        self.dropped = 0  # blocks that the device gave up before there was a slot for them
        self._pool = pool
        self._block_size = block_size
        self._slot_bytes = config.manager.slot_bytes
        self._onboarded_blocks = self._offloaded_blocks = 0
        self._onboard_s = self._offload_s = 0.0
        self._wait_s = config.manager.onboard_timeout_s
        below = [TierSpec(tier=StorageTier.DISK, capacity=config.disk_blocks)] if config.disk_blocks else []
        self.manager = BlockManager(config.manager, below, slots=config.host_blocks)
        self._offloading = _Direction(config.host, block_size, Link())
        self._onboarding = _Direction(config.host, block_size, Link())
        self._writing = _Direction(config.disk, block_size, Link())
        self._fetching = _Direction(config.disk, block_size, Link())
        self._now_s = 0.0
        self._copies: list[tuple[float, int, Callable[[], None]]] = []  # under way: when each ends, and what then
        self._begun = 0  # copies and lookups
        self._slots: deque[int] = deque()  # granted
        self._computed: list[int] = []  # in the step that is under way
        self._pending: deque[int] = deque()  # wait for a slot; no more than the device has blocks
        self._in_host: set[int] = set()  # or on their way there
        self._waiting: dict[int, SequenceState] = {}  # by lookup
        self._lookups: dict[SequenceState, int] = {}  # the same the other way round
        self._onboarded: list[Onboarded] = []
        self.manager.attach(_SESSION)
        for spec in below:
            self.manager.tier_opened(spec.tier, (), self._now_s)
        self._do()

    @property
    def waiting(self) -> int:
        """Sequences that wait for blocks."""
        return len(self._waiting)

    @property
    def next_s(self) -> float | None:
        """When advance() has something to do, should nothing happen until then; None: it has not."""
        if self._computed or self._onboarded:
            return self._now_s
        due_s = self._copies[0][0] if self._copies else None
        deadline_s = self.manager.next_tick_s() if self._waiting else None
        return min((time_s for time_s in (due_s, deadline_s) if time_s is not None), default=None)

    def advance(self, now_s: float) -> list[Onboarded]:
        """The step that was under way, if one was, is over: what has come for sequences by this time, seconds."""
        while self._copies and self._copies[0][0] <= now_s:
            self._end_copy()
        self._now_s = now_s
        self._tick()
        self._keep_computed()
        while self._copies and self._copies[0][0] <= now_s:  # such as take no time
            self._end_copy()
        onboarded, self._onboarded = self._onboarded, []
        return onboarded

    def computed(self, sequence_hashes: Sequence[int]) -> None:
        """The step that begins fills these blocks."""
        self._computed.extend(sequence_hashes)

    def look_up(self, sequence: SequenceState, sequence_hashes: Sequence[int]) -> bool:
        """Whether a sequence is to wait for some of the blocks that it lacks next; advance() says when they are there.

        That takes a while for those in host memory, and up to the time allowed for those on the disk; then it goes on
        with what is there, which may be nothing.
        """
        self._begun += 1
        lookup = self._begun
        self._waiting[lookup], self._lookups[sequence] = sequence, lookup
        self.manager.look_up(_SESSION, lookup, [_key(name) for name in sequence_hashes], self._wait_s, self._now_s)
        self._do()
        if self._onboarded and self._onboarded[-1].sequence is sequence:  # with nothing
            self._onboarded.pop()
        return sequence in self._lookups

    def give_up(self, sequence: SequenceState) -> None:
        """Nobody waits for these blocks any more; does nothing for one that does not wait."""
        lookup = self._lookups.get(sequence)
        if lookup is not None:
            self._release(lookup)
            self._do()

    def figures(self, number: int) -> PoolFigures:
        """As those of a service's pool, for worker `number` of a process; in the time that is simulated."""
        counters = self.manager.figures
        return PoolFigures(
            namespace=number.to_bytes(16, "big"),
            description=f"simulated tiers of worker {number}",
            slot_bytes=self._slot_bytes,
            block_tokens=self._block_size,
            engines=1,
            held_slots=self.manager.held_slots,
            tiers=self.manager.tier_figures(),
            lookups=counters.lookups,
            late_lookups=counters.late_lookups,
            onboarded_blocks=self._onboarded_blocks,
            onboard_s=self._onboard_s,
            offloaded_blocks=self._offloaded_blocks,
            offload_s=self._offload_s,
            dropped_offloads=self.dropped,
        )

    def _release(self, lookup: int) -> SequenceState:
        sequence = self._waiting.pop(lookup)
        del self._lookups[sequence]
        self.manager.release(_SESSION, [lookup], self._now_s)
        return sequence

    def _tick(self) -> None:
        due_s = self.manager.next_tick_s()
        if due_s is not None and due_s <= self._now_s:
            self.manager.tick(self._now_s)
            self._do()

    def _keep_computed(self) -> None:
        for name in self._computed:
            if name in self._in_host:
                continue
            if len(self._pending) < self._pool.num_blocks:
                self._pending.append(name)
            else:
                self.dropped += 1
        self._computed.clear()
        self._offload()

    def _offload(self) -> None:
        while self._slots and self._pending:
            name = self._pending.popleft()
            if name in self._in_host:
                continue
            if not self._pool.match((name,)):
                self.dropped += 1
                continue
            self._in_host.add(name)
            slot = self._slots.popleft()
            end_s = self._offloading.begin(1, self._now_s)
            self._offloaded_blocks += 1
            self._offload_s += end_s - self._now_s
            self._at(end_s, partial(self._offloaded, slot, name))

    def _offloaded(self, slot: int, name: int) -> None:
        self.manager.commit(_SESSION, slot, Stored(_key(name), name), self._now_s)

    def _at(self, time_s: float, then: Callable[[], None]) -> None:
        self._begun += 1
        heapq.heappush(self._copies, (time_s, self._begun, then))

    def _end_copy(self) -> None:
        """The copy that ends first ends now."""
        time_s, _, then = heapq.heappop(self._copies)
        self._now_s = max(self._now_s, time_s)
        then()
        self._do()

    def _do(self) -> None:
        """What the manager wants done."""
        while effects := self.manager.take_effects():
            for effect in effects:
                self._do_one(effect)
        self._offload()

    def _do_one(self, effect: Effect) -> None:
        now_s, manager = self._now_s, self.manager
        match effect:
            case Grant(slots=slots):
                self._slots.extend(slots)
            case Write(tier=tier, copy=copy):
                end_s = self._writing.begin(1, now_s)
                self._at(end_s, lambda: manager.written(tier, copy.block, end_s - now_s, self._now_s))
            case Fetch(tier=tier, copy=copy):
                end_s = self._fetching.begin(1, now_s)
                self._at(end_s, lambda: manager.fetched(tier, copy, Outcome.READ, end_s - now_s, self._now_s))
            case Answer():
                self._answered(effect)
            case Change():
                self._changed(effect)
            case _:
                pass  # no bytes are to be forgotten, and no tier is without places

    def _answered(self, answer: Answer) -> None:
        if answer.coming or answer.lookup not in self._waiting:
            return
        if answer.slots:
            end_s = self._onboarding.begin(len(answer.slots), self._now_s)
            self._onboarded_blocks += len(answer.slots)
            self._onboard_s += end_s - self._now_s
            self._at(end_s, partial(self._onboard, answer))
        else:
            self._onboard(answer)

    def _onboard(self, answer: Answer) -> None:
        if answer.lookup in self._waiting:  # else it was given up meanwhile
            host, disk, *_ = answer.tiers
            self._onboarded.append(Onboarded(self._release(answer.lookup), host, disk))

    def _changed(self, change: Change) -> None:
        if change.tier is StorageTier.HOST:
            self._in_host.update(change.stored)
            self._in_host.difference_update(change.removed)
        if self.observer is not None:
            self.observer.tier_changed(_TIERS[change.tier], change.stored, change.removed)


def _key(name: int) -> bytes:
    return name.to_bytes(KEY_BYTES, "little")
