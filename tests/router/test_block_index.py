"""One suite for the reference and the extension; and a model of both that is too simple to be wrong."""

from collections.abc import Callable
from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.router.block_index import SLOTS_MAX, TIERS, BlockIndex, PyBlockIndex, SlotMatch
from dynamo.router.kernel import choose_kernel
from dynamo.tokens import HASH_SEED, hash_array, hashes_to_bytes, sequence_hashes, token_array

NATIVE = choose_kernel(None)

Make = Callable[[int], BlockIndex]
IMPLEMENTATIONS = [
    pytest.param(PyBlockIndex, id="python"),
    pytest.param(
        NATIVE.block_index, id="native", marks=pytest.mark.skipif(NATIVE.name != "native", reason=NATIVE.reason)
    ),
]
DEVICE, HOST, DISK = range(TIERS)


@pytest.fixture(params=IMPLEMENTATIONS)
def make(request: pytest.FixtureRequest) -> Make:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def index(make: Make) -> BlockIndex:
    return make(1000)


def matches(index: BlockIndex, *hashes: int) -> list[SlotMatch]:
    return index.match(hash_array(hashes))


def store(index: BlockIndex, slot: int, *hashes: int, tier: int = DEVICE) -> None:
    index.store(slot, tier, hash_array(hashes))


def test_empty(index: BlockIndex) -> None:
    assert len(index) == 0
    assert index.pruned == 0
    assert matches(index) == matches(index, 1) == []
    assert not index.held(3, HOST)
    assert index.clear(3, 10) == 0
    index.remove(3, DEVICE, hash_array([1]))
    store(index, 3)
    assert len(index) == 0


def test_consecutive_blocks_count(index: BlockIndex) -> None:
    store(index, 0, 1, 2, 3)
    store(index, 1, 1)
    store(index, 2, 2, 3)
    store(index, 5, 1, 3)
    assert matches(index, 1, 2, 3, 4) == [(1, 1, 0, 0), (5, 1, 0, 0), (0, 3, 0, 0)]
    assert matches(index, 2) == [(0, 1, 0, 0), (2, 1, 0, 0)]
    assert matches(index, 4, 1) == []


def test_a_block_counts_on_its_fastest_tier(index: BlockIndex) -> None:
    store(index, 0, 1, 2)
    store(index, 0, 2, 3, 4, tier=HOST)
    store(index, 0, 1, 4, 5, tier=DISK)
    store(index, 1, 1, tier=DISK)
    assert matches(index, 1, 2, 3, 4, 5, 6) == [(1, 0, 0, 1), (0, 2, 2, 1)]
    assert [len(index.held(0, tier)) for tier in range(TIERS)] == [2, 3, 3]
    assert len(index) == 5


def test_remove_leaves_other_tiers_and_slots(index: BlockIndex) -> None:
    for slot in (0, 1):
        store(index, slot, 1, 2)
    store(index, 0, 1, tier=HOST)
    index.remove(0, DEVICE, hash_array([1, 2, 1, 9]))
    assert matches(index, 1, 2) == [(0, 0, 1, 0), (1, 2, 0, 0)]
    index.remove(1, DEVICE, hash_array([1, 2]))
    index.remove(0, HOST, hash_array([1]))
    assert len(index) == 0


def test_clear(index: BlockIndex) -> None:
    for tier in range(TIERS):
        store(index, 7, 1, 2, 3, tier=tier)
    store(index, 8, 3)
    assert index.clear(7, 4) == 4
    assert sum(len(index.held(7, tier)) for tier in range(TIERS)) == 5
    assert index.clear(7, 0) == 0
    assert index.clear(7, 6) == 5
    assert not any(index.held(7, tier) for tier in range(TIERS))
    assert matches(index, 3) == [(8, 1, 0, 0)]
    assert len(index) == 1
    store(index, 7, 3)
    assert list(index.held(7, DEVICE)) == [3]


def test_held_once_each(index: BlockIndex) -> None:
    for _ in range(3):
        store(index, 0, 1, 2, 2)
        index.remove(0, DEVICE, hash_array([1]))
    store(index, 0, 1)
    assert sorted(index.held(0, DEVICE)) == [1, 2]


def test_many_slots(index: BlockIndex) -> None:
    slots = [0, 63, 64, 65, 127, 128, 1000, SLOTS_MAX - 1]
    for length, slot in enumerate(slots, 1):
        store(index, slot, *range(length))
    store(index, 64, 3, tier=HOST)
    expected = [(slot, length, 0, 0) for length, slot in enumerate(slots, 1)]
    expected.remove((64, 3, 0, 0))
    assert matches(index, *range(20)) == sorted([*expected, (64, 3, 1, 0)], key=lambda m: (sum(m[1:]), m[0]))
    index.clear(SLOTS_MAX - 1, 100)
    assert matches(index, *range(20))[-1] == (1000, 7, 0, 0)


def test_every_hash_is_a_hash(index: BlockIndex) -> None:
    store(index, 0, 0, 2**64 - 1, 2**32, 2**63)
    assert sorted(index.held(0, DEVICE)) == [0, 2**32, 2**63, 2**64 - 1]
    assert matches(index, 0, 2**64 - 1, 2**32, 2**63, 1) == [(0, 4, 0, 0)]


def test_least_recently_used_blocks_make_room(make: Make) -> None:
    index = make(4)
    store(index, 0, 1, 2)
    store(index, 1, 3, 4, tier=HOST)
    matches(index, 1)  # that was a use
    store(index, 0, 4)  # that too
    store(index, 2, 5, 6)
    assert len(index) == 4
    assert index.pruned == 2
    assert [bool(matches(index, block)) for block in range(1, 7)] == [True, False, False, True, True, True]
    assert [sorted(index.held(slot, DEVICE)) for slot in range(3)] == [[1, 4], [], [5, 6]]
    assert list(index.held(1, HOST)) == [4]


def test_what_continues_a_prefix_goes_first(make: Make) -> None:
    index = make(4)
    store(index, 0, 1, 2, 3)
    store(index, 0, 10)
    matches(index, 1, 2, 3, 4)
    store(index, 0, 20, 21)
    assert sorted(index.held(0, DEVICE)) == [1, 2, 20, 21]
    store(index, 0, *range(30, 40))
    assert sorted(index.held(0, DEVICE)) == [30, 31, 32, 33]


def test_an_old_block_that_is_used_again_stays(make: Make) -> None:
    index = make(640)
    for block in range(641):
        store(index, 0, block)
    store(index, 1, 1)
    matches(index, 2)
    store(index, 0, 3, tier=HOST)
    index.remove(0, DEVICE, hash_array([4]))
    store(index, 0, 4)
    store(index, 0, *range(1000, 1005))
    assert index.pruned == 1 + 5
    assert sorted(index.held(0, DEVICE)) == [1, 2, 3, 4, *range(10, 641), *range(1000, 1005)]


def test_hashes_as_they_travel(index: BlockIndex) -> None:
    blocks = hash_array([1, 2**64 - 1, 3])
    index.store(0, DEVICE, hashes_to_bytes(blocks))
    assert index.match(blocks) == [(0, 3, 0, 0)]
    index.remove(0, DEVICE, hashes_to_bytes(blocks[1:]))
    assert list(index.held(0, DEVICE)) == [1]
    for call in (index.store, index.remove):
        with pytest.raises(ValueError, match="multiple"):
            call(0, DEVICE, b"1234567")
    assert list(index.held(0, DEVICE)) == [1]


def test_an_unmatched_block_is_not_used(make: Make) -> None:
    index = make(2)
    store(index, 0, 2)
    store(index, 1, 1)
    matches(index, 1, 2)  # nobody holds both
    store(index, 0, 3)
    assert len(index.held(0, DEVICE)) == 1
    assert list(index.held(1, DEVICE)) == [1]


def test_hash_and_match(index: BlockIndex) -> None:
    prompt = token_array(range(100))
    hashes = sequence_hashes(prompt, 16)
    index.store(4, DEVICE, hashes[:3])
    assert index.hash_and_match(prompt, 16, HASH_SEED) == (hashes, [(4, 3, 0, 0)])
    assert index.hash_and_match(prompt, 16, 7) == (sequence_hashes(prompt, 16, 7), [])
    assert index.hash_and_match(token_array(), 16, HASH_SEED) == (hash_array(), [])


@pytest.mark.parametrize("max_blocks", [0, -1])
def test_no_room_at_all(make: Make, max_blocks: int) -> None:
    with pytest.raises(ValueError, match="max_blocks must be at least 1"):
        make(max_blocks)


@pytest.mark.parametrize("slot", [-1, SLOTS_MAX, 2**31, 2**70])
def test_slot_out_of_range(index: BlockIndex, slot: int) -> None:
    for call in (
        lambda: index.store(slot, DEVICE, hash_array([1])),
        lambda: index.remove(slot, DEVICE, hash_array([1])),
        lambda: index.held(slot, DEVICE),
        lambda: index.clear(slot, 1),
    ):
        with pytest.raises(ValueError, match="a slot is between 0 and 65535"):
            call()
    assert len(index) == 0


@pytest.mark.parametrize("tier", [-1, TIERS, 2**70])
def test_tier_out_of_range(index: BlockIndex, tier: int) -> None:
    for call in (
        lambda: index.store(0, tier, hash_array([1])),
        lambda: index.remove(0, tier, hash_array([1])),
        lambda: index.held(0, tier),
    ):
        with pytest.raises(ValueError, match="a tier is between 0 and 2"):
            call()


class Model:
    """Sets and a list: obviously right, and slow."""

    def __init__(self, max_blocks: int) -> None:
        self.max_blocks = max_blocks
        self.holders: dict[int, set[tuple[int, int]]] = {}  # (slot, tier) by block
        self.order: list[int] = []  # least recently used first
        self.pruned = 0

    def use(self, block: int) -> None:
        if block in self.order:
            self.order.remove(block)
        self.order.append(block)

    def forget(self, block: int) -> None:
        del self.holders[block]
        self.order.remove(block)

    def store(self, slot: int, tier: int, hashes: list[int]) -> None:
        for block in reversed(hashes):
            self.holders.setdefault(block, set()).add((slot, tier))
            self.use(block)
        while len(self.order) > self.max_blocks:
            self.forget(self.order[0])
            self.pruned += 1

    def remove(self, slot: int, tier: int, hashes: list[int]) -> None:
        for block in hashes:
            if block in self.holders:
                self.holders[block].discard((slot, tier))
                if not self.holders[block]:
                    self.forget(block)

    def held(self, slot: int, tier: int) -> list[int]:
        return sorted(block for block, holders in self.holders.items() if (slot, tier) in holders)

    def match(self, hashes: list[int]) -> list[SlotMatch]:
        found: list[SlotMatch] = []
        for slot in {slot for holders in self.holders.values() for slot, _ in holders}:
            tiers = [min((t for s, t in self.holders.get(b, ()) if s == slot), default=-1) for b in hashes]
            run = list(takewhile(lambda tier: tier >= 0, tiers))
            if run:
                found.append((slot, run.count(DEVICE), run.count(HOST), run.count(DISK)))
        for block in reversed(hashes[: max((sum(m[1:]) for m in found), default=0)]):
            self.use(block)
        return sorted(found, key=lambda m: (sum(m[1:]), m[0]))


HASHES = st.lists(st.integers(0, 12).map(lambda n: n * 0x1234_5678_9ABC_DEF1 % 2**64), max_size=8)
SLOTS = st.sampled_from([0, 1, 2, 63, 64, 200])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["store", "store", "remove", "match", "clear", "held"]), SLOTS, st.integers(0, 2), HASHES
    ),
    max_size=60,
)


LIVES = given(max_blocks=st.sampled_from([1, 2, 5, 9, 100]), steps=STEPS)


@pytest.mark.parametrize("make", IMPLEMENTATIONS)
@settings(max_examples=100, deadline=None)
@LIVES
def test_against_the_model(make: Make, max_blocks: int, steps: list[tuple[str, int, int, list[int]]]) -> None:
    live(make, max_blocks, steps)


@pytest.mark.long
@pytest.mark.parametrize("make", IMPLEMENTATIONS)
@settings(max_examples=3000, deadline=None)
@LIVES
def test_against_the_model_for_long(make: Make, max_blocks: int, steps: list[tuple[str, int, int, list[int]]]) -> None:
    live(make, max_blocks, steps)


def live(make: Make, max_blocks: int, steps: list[tuple[str, int, int, list[int]]]) -> None:
    index, model = make(max_blocks), Model(max_blocks)
    for step, slot, tier, hashes in steps:
        if step == "store":
            index.store(slot, tier, hash_array(hashes))
            model.store(slot, tier, hashes)
        elif step == "remove":
            index.remove(slot, tier, hash_array(hashes))
            model.remove(slot, tier, hashes)
        elif step == "match":
            assert index.match(hash_array(hashes)) == model.match(hashes)
        elif step == "clear":
            before = [set(index.held(slot, each)) for each in range(TIERS)]
            seen = index.clear(slot, len(hashes))
            for each in range(TIERS):
                after = set(index.held(slot, each))
                assert after <= before[each]
                assert seen == len(hashes) or not after
                model.remove(slot, each, list(before[each] - after))
        else:
            assert sorted(index.held(slot, tier)) == model.held(slot, tier)
        assert len(index) == len(model.holders)
        assert index.pruned == model.pruned
    for slot in (0, 1, 2, 63, 64, 200):
        for tier in range(TIERS):
            assert sorted(index.held(slot, tier)) == model.held(slot, tier)


def test_many_blocks_come_and_go(make: Make) -> None:
    """Long enough for tables to grow, for places in them to be used again, and for what is remembered to be tidied."""
    index = make(3000)
    held: dict[int, list[int]] = {slot: [] for slot in range(10)}
    for step in range(2000):
        slot = step * 37 % 10
        block = step * 0x9E37_79B9_7F4A_7C15 % 2**64
        prefix = [(block + i * i) % 2**64 for i in range(20)]
        store(index, slot, *prefix)
        held[slot] += prefix
        if len(held[slot]) > 30:
            index.remove(slot, DEVICE, hash_array(held[slot][:20]))
            del held[slot][:20]
        assert matches(index, *prefix)[-1] == (slot, 20, 0, 0)
    assert index.pruned == 0
    assert {slot: set(index.held(slot, DEVICE)) for slot in held} == {
        slot: set(blocks) for slot, blocks in held.items()
    }
    assert len(index) == 200
