from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dynamo.engines.mocker.block_pool import BlockPool


class Recorder:
    """Keeps what an observer would know."""

    def __init__(self) -> None:
        self.present: dict[int, int | None] = {}  # block -> the one before it

    def stored(self, sequence_hashes: Sequence[int], parent: int | None) -> None:
        for sequence_hash in sequence_hashes:
            assert sequence_hash not in self.present
            assert parent is None or parent in self.present
            self.present[sequence_hash] = parent
            parent = sequence_hash

    def removed(self, sequence_hashes: Sequence[int]) -> None:
        for sequence_hash in sequence_hashes:
            del self.present[sequence_hash]
            assert sequence_hash not in self.present.values(), "a block was evicted before one that follows it"


def fill(pool: BlockPool, hashes: Sequence[int]) -> None:
    """A sequence computes these blocks."""
    assert pool.allocate(len(hashes))
    pool.share(hashes, None)


def test_blocks_are_free_then_used_then_cached() -> None:
    pool = BlockPool(4)
    fill(pool, [10, 11])
    assert pool.allocate(1)
    assert (pool.used, pool.cached, pool.free) == (3, 0, 1)

    pool.release(1, [10, 11])
    assert (pool.used, pool.cached, pool.free) == (0, 2, 2)


def test_a_prefix_is_used_again() -> None:
    pool = BlockPool(4)
    fill(pool, [10, 11])
    pool.release(0, [10, 11])

    assert pool.match([10, 11, 12]) == 2
    assert pool.allocate(1, [10, 11])
    assert (pool.used, pool.cached, pool.free) == (3, 0, 1)


def test_a_prefix_is_shared_while_it_is_in_use() -> None:
    pool = BlockPool(4)
    fill(pool, [10, 11])

    assert pool.allocate(1, [10])
    assert pool.used == 3
    pool.release(0, [10, 11])
    assert (pool.used, pool.cached) == (2, 1)  # 10 has a user left


def test_a_match_ends_at_the_first_missing_block() -> None:
    pool = BlockPool(4)
    fill(pool, [10, 11])

    assert pool.match([10, 99, 11]) == 1
    assert pool.match([99, 10]) == 0
    assert pool.match([]) == 0


def test_the_same_block_made_twice_takes_room_once() -> None:
    pool = BlockPool(4)
    fill(pool, [10, 11])
    fill(pool, [10, 11])

    assert (pool.used, pool.free) == (2, 2)
    pool.release(0, [10, 11])
    assert pool.used == 2
    pool.release(0, [10, 11])
    assert (pool.used, pool.cached) == (0, 2)


def test_what_was_released_longest_ago_is_evicted_first_and_last_blocks_before_first_ones() -> None:
    pool = BlockPool(4)
    fill(pool, [10, 11])
    pool.release(0, [10, 11])
    fill(pool, [20, 21])
    pool.release(0, [20, 21])

    assert pool.allocate(1)
    assert pool.match([10, 11]) == 1
    assert pool.allocate(2)
    assert pool.match([10]) == 0
    assert pool.match([20, 21]) == 1


def test_a_pool_without_room_takes_nothing() -> None:
    pool = BlockPool(4)
    fill(pool, [10, 11])
    pool.release(0, [10, 11])

    assert not pool.allocate(3, [10, 11])  # reviving two leaves room for two
    assert (pool.used, pool.cached, pool.free) == (0, 2, 2)
    assert pool.allocate(2, [10, 11])


def test_an_observer_sees_blocks_come_and_go() -> None:
    recorder = Recorder()
    pool = BlockPool(3, recorder)
    fill(pool, [10, 11])
    pool.release(0, [10, 11])
    assert pool.allocate(1, [10])
    pool.share([12], 10)
    assert recorder.present == {10: None, 11: 10, 12: 10}

    assert pool.allocate(1)
    assert recorder.present == {10: None, 12: 10}


class PoolMachine(RuleBasedStateMachine):
    """Random sequences against a plain model: a block is named by the whole path to it.

    The model knows who holds what; what is cached, it learns from the observer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recorder = Recorder()
        self.pool = BlockPool(8, self.recorder)
        self.sequences: list[tuple[int, list[int]]] = []  # private blocks; hashes of the shared ones

    @rule(path=st.lists(st.integers(0, 1), max_size=6), tail=st.integers(0, 2))
    def start(self, path: list[int], tail: int) -> None:
        """A sequence whose full blocks are `path`, then `tail` blocks more."""
        hashes = names(path)
        matched = self.pool.match(hashes)
        assert matched == len([h for h in hashes if h in self.recorder.present])
        before = (self.pool.used, self.pool.cached, self.pool.free)
        if self.pool.allocate(len(hashes) - matched + tail, hashes[:matched]):
            self.pool.share(hashes[matched:], hashes[matched - 1] if matched else None)
            self.sequences.append((tail, hashes))
        else:
            assert before == (self.pool.used, self.pool.cached, self.pool.free)
            held = {h for _, shared in self.sequences for h in shared} | set(hashes[:matched])
            private = sum(tail for tail, _ in self.sequences)
            assert len(held) + private + len(hashes) - matched + tail > self.pool.num_blocks

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        private, shared = self.sequences.pop(data.draw(st.integers(0, len(self.sequences) - 1)))
        self.pool.release(private, shared)

    @invariant()
    def every_block_is_accounted_for(self) -> None:
        users = Counter(h for _, shared in self.sequences for h in shared)
        assert self.pool.used == len(users) + sum(private for private, _ in self.sequences)
        assert self.pool.used + self.pool.cached + self.pool.free == self.pool.num_blocks
        assert self.pool.free >= 0
        assert self.pool._users == users
        assert users.keys() | self.pool._cached.keys() == self.recorder.present.keys()
        assert not users.keys() & self.pool._cached.keys()


def names(path: list[int]) -> list[int]:
    """A number for each prefix of the path."""
    return [int("1" + "".join(map(str, path[: depth + 1]))) for depth in range(len(path))]


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_hole_in_a_prefix_is_a_defect() -> None:
    pool = BlockPool(8)
    fill(pool, [10, 11])
    assert pool.allocate(2)

    with pytest.raises(AssertionError):
        pool.share([99, 11], None)
