"""A shell for a BlockManager whose memory and tiers are dictionaries. It checks every effect against the rules."""

from dataclasses import dataclass, field

from dynamo.kvbm.effects import Answer, Change, Effect, Fetch, Find, Forget, Grant, Write
from dynamo.kvbm.manager import BlockManager, ManagerConfig, TierSpec
from dynamo.kvbm.storage.base import Copy, Outcome, Stored
from dynamo.protocols.kvbm import StorageTier

TIERS = (StorageTier.DISK, StorageTier.OBJECT, StorageTier.PEER)


def key_of(name: int) -> bytes:
    """A block's key; its name is the number it is made of."""
    return name.to_bytes(32, "big")


@dataclass
class Engine:
    """What a session knows it has."""

    granted: set[int] = field(default_factory=set)
    asked: dict[int, tuple[bytes, ...]] = field(default_factory=dict)
    answers: dict[int, Answer] = field(default_factory=dict)


class MemoryWorld:
    """Does what effects say when it is told to, and not before. `slots[i]` is the key that was last written there."""

    def __init__(self, config: ManagerConfig, slots: int, disk: int | None = None, *others: StorageTier) -> None:
        specs = [] if disk is None else [TierSpec(tier=StorageTier.DISK, capacity=disk)]
        specs += [TierSpec(tier=tier, capacity=None) for tier in others]
        self.specs = specs
        self.manager = BlockManager(config, specs, slots)
        self.now_s = 1.0
        self.slots: list[bytes] = [b""] * slots
        self.disk: dict[int, bytes] = {}
        self.store: dict[StorageTier, set[bytes]] = {tier: set() for tier in others}
        self.engines: dict[int, Engine] = {}
        self.writes: list[Write] = []
        self.fetches: list[Fetch] = []
        self.finds: list[Find] = []
        self.log: list[Effect] = []  # since last cleared by the test
        self.names: dict[StorageTier, set[int]] = {StorageTier.HOST: set(), StorageTier.DISK: set()}

    def open(self, tier: StorageTier = StorageTier.DISK) -> None:
        """A tier is there, with what it holds."""
        blocks = [Stored(key, int.from_bytes(key, "big"), place) for place, key in self.disk.items()]
        if tier is not StorageTier.DISK:
            blocks = []
        self.manager.tier_opened(tier, blocks, self.now_s)
        self.settle()

    def attach(self, session: int) -> None:
        self.manager.attach(session)
        self.engines[session] = Engine()
        self.settle()

    def detach(self, session: int) -> None:
        del self.engines[session]
        self.manager.detach(session)
        self.settle()

    def fill(self, session: int, *names: int) -> list[int]:
        """The engine fills slots that it has with these blocks. Returns those."""
        filled = []
        for name in names:
            slot = min(self.engines[session].granted)
            self.engines[session].granted.remove(slot)
            self.slots[slot] = key_of(name)
            self.manager.commit(session, slot, Stored(key_of(name), name), self.now_s)
            filled.append(slot)
        self.settle()
        return filled

    def look_up(self, session: int, lookup: int, *names: int, wait_s: float = 0.5) -> Answer | None:
        """The answer that comes at once."""
        keys = tuple(key_of(name) for name in names)
        self.engines[session].asked[lookup] = keys
        self.manager.look_up(session, lookup, keys, wait_s, self.now_s)
        self.settle()
        return self.answer(session, lookup)

    def answer(self, session: int, lookup: int) -> Answer | None:
        """The latest."""
        return self.engines[session].answers.get(lookup)

    def release(self, session: int, *lookups: int) -> None:
        for lookup in lookups:
            del self.engines[session].asked[lookup]
            self.engines[session].answers.pop(lookup, None)
        self.manager.release(session, lookups, self.now_s)
        self.settle()

    def end_write(self, write: Write, *, good: bool = True) -> None:
        self.writes.remove(write)
        block = write.copy.block
        if good:
            assert self.slots[write.copy.slot] == block.key, "its slot was given to somebody else meanwhile"
            if block.place is None:
                self.store[write.tier].add(block.key)
            else:
                self.disk[block.place] = block.key
            self.manager.written(write.tier, block, 0.01, self.now_s)
        else:
            self.manager.write_failed(write.tier, block, self.now_s)
        self.settle()

    def end_fetch(self, fetch: Fetch, *, failed: bool = False, corrupt: bool = False) -> None:
        """Reads what is there: it is corrupt if the test says so, absent if it is another block."""
        self.fetches.remove(fetch)
        block = fetch.copy.block
        if failed:
            self.slots[fetch.copy.slot] = b"torn"
            self.manager.fetch_failed(fetch.tier, fetch.copy, self.now_s)
        else:
            outcome = self._read(fetch, corrupt=corrupt)
            named = Stored(block.key, int.from_bytes(block.key, "big"), block.place)
            self.manager.fetched(fetch.tier, Copy(fetch.copy.slot, named), outcome, 0.01, self.now_s)
        self.settle()

    def _read(self, fetch: Fetch, *, corrupt: bool) -> Outcome:
        block = fetch.copy.block
        there = (
            self.disk.get(block.place) == block.key
            if block.place is not None
            else (block.key in self.store[fetch.tier])
        )
        self.slots[fetch.copy.slot] = b"torn" if corrupt or not there else block.key
        if corrupt:
            return Outcome.CORRUPT
        return Outcome.READ if there else Outcome.ABSENT

    def end_find(self, find: Find) -> None:
        self.finds.remove(find)
        count = next((n for n, key in enumerate(find.keys) if key not in self.store[find.tier]), len(find.keys))
        self.manager.found(find.tier, find.lookup, count, self.now_s)
        self.settle()

    def run(self) -> None:
        """Everything that is under way ends well."""
        while self.writes or self.fetches or self.finds:
            for find in self.finds[:]:
                self.end_find(find)
            for fetch in self.fetches[:]:
                self.end_fetch(fetch)
            for write in self.writes[:]:
                self.end_write(write)

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.manager.tick(self.now_s)
        self.settle()

    def settle(self) -> None:
        """Takes effects and checks each."""
        for effect in self.manager.take_effects():
            self.log.append(effect)
            match effect:
                case Grant(session, slots):
                    for slot in slots:
                        self._is_free(slot)
                        self.engines[session].granted.add(slot)
                case Fetch(_, copy):
                    self._is_free(copy.slot)
                    self._is_idle(effect)
                    self.fetches.append(effect)
                case Write():
                    assert self.slots[effect.copy.slot] == effect.copy.block.key
                    self._is_idle(effect)
                    self.writes.append(effect)
                case Find():
                    self.finds.append(effect)
                case Forget(_, block):
                    if block.place is None:
                        self.store[effect.tier].discard(block.key)
                    elif self.disk.get(block.place) == block.key:
                        del self.disk[block.place]
                case Answer():
                    self._answered(effect)
                case Change(tier, stored, removed):
                    assert not set(stored) & set(removed)
                    self.names[tier] = self.names[tier] - set(removed) | set(stored)
        self.check()

    def check(self) -> None:
        """What an engine may read holds what it asked for, and the books are what they should be."""
        for engine in self.engines.values():
            for lookup, answer in engine.answers.items():
                for key, slot in zip(engine.asked[lookup], answer.slots, strict=False):
                    assert self.slots[slot] == key
        for tier, names in self.names.items():
            assert names == {block.name for block in self.manager.snapshot(tier)}

    def _answered(self, answer: Answer) -> None:
        engine = self.engines.get(answer.session)
        if engine is None or answer.lookup not in engine.asked:
            return
        keys = engine.asked[answer.lookup]
        assert len(answer.slots) + answer.coming <= len(keys)
        assert sum(answer.tiers) == len(answer.slots)
        before = engine.answers.get(answer.lookup)
        if before is not None:
            assert before.coming, "the last answer was given before"
            assert answer.slots[: len(before.slots)] == before.slots
        engine.answers[answer.lookup] = answer

    def _is_free(self, slot: int) -> None:
        """Nobody may write or read there."""
        for engine in self.engines.values():
            assert slot not in engine.granted
            assert not any(slot in answer.slots for answer in engine.answers.values())
        assert slot not in {write.copy.slot for write in self.writes}
        assert slot not in {fetch.copy.slot for fetch in self.fetches}

    def _is_idle(self, effect: Write | Fetch) -> None:
        """No other copy of this block or its place is under way in that tier in a way that could collide."""
        block = effect.copy.block
        others: list[Write | Fetch] = [*self.writes, *self.fetches]
        for other in others:
            if other.tier is effect.tier:
                assert other.copy.block.place is None or other.copy.block.place != block.place
                assert type(other) is not type(effect) or other.copy.block.key != block.key
