"""Workers and events on top of the block index."""

import pytest

from dynamo.protocols.generation import WorkerId
from dynamo.protocols.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, Tier
from dynamo.router import retired_slots
from dynamo.router.radix_tree import Overlap, RadixTree
from dynamo.tokens import HASH_SEED, hash_array, hashes_to_bytes, sequence_hashes, token_array

A, B, A1 = WorkerId(10), WorkerId(2**63), WorkerId(10, 1)


def data(*hashes: int) -> bytes:
    return hashes_to_bytes(hash_array(hashes))


@pytest.fixture
def tree() -> RadixTree:
    return RadixTree()


def test_events(tree: RadixTree) -> None:
    tree.apply(A, BlockStored(data(1, 2, 3)))
    tree.apply(B, BlockStored(data(1, 2), Tier.HOST))
    tree.apply(A1, BlockStored(data(1)))
    found = tree.find_matches(hash_array([1, 2, 3, 4]))
    assert found.overlaps == {A: Overlap(3, 0, 0), B: Overlap(0, 2, 0), A1: Overlap(1, 0, 0)}
    assert found.scores == {A: 3, B: 2, A1: 1}

    tree.apply(A, BlockRemoved(data(2, 7)))
    assert tree.find_matches(hash_array([1, 2, 3])).scores == {A: 1, B: 2, A1: 1}
    tree.apply(B, BlockRemoved(data(1)))  # not on that tier
    tree.apply(A, AllBlocksCleared())
    assert tree.find_matches(hash_array([1, 2, 3])).scores == {B: 2, A1: 1}
    assert len(tree) == 2


def test_events_about_workers_never_heard_of(tree: RadixTree) -> None:
    tree.apply(A, BlockRemoved(data(1)))
    tree.apply(A, AllBlocksCleared())
    tree.remove_worker(A)
    assert tree.workers() == []
    assert not tree.held(A)


def test_hashes_that_are_none(tree: RadixTree) -> None:
    with pytest.raises(ValueError, match="multiple"):
        tree.apply(A, BlockStored(b"1234567"))
    assert len(tree) == 0


def test_a_worker_that_goes_leaves_nothing_to_the_next(tree: RadixTree) -> None:
    tree.store(A, hash_array([1, 2]))
    tree.store(B, hash_array([1]))
    tree.remove_worker(A)
    assert tree.workers() == [B]
    tree.store(A1, hash_array([2]))
    assert tree.find_matches(hash_array([1, 2])).scores == {B: 1}
    assert tree.find_matches(hash_array([2])).scores == {A1: 1}
    tree.store(A, hash_array([1]))
    assert tree.find_matches(hash_array([1])).scores == {B: 1, A: 1}


def test_draft(tree: RadixTree) -> None:
    tree.store(A, hash_array([1, 2]))
    tree.store(B, hash_array([1]))
    tree.draft(A, hash_array([1]))
    tree.draft(A, hash_array([2, 3]), Tier.HOST)
    tree.draft(A1, hash_array([1]))
    assert tree.find_matches(hash_array([1, 2, 3])).overlaps == {A: Overlap(2, 0, 0), B: Overlap(1, 0, 0)}
    assert tree.find_matches(hash_array([3])).overlaps == {}
    assert tree.workers() == [A, B]
    tree.adopt(A)
    assert tree.find_matches(hash_array([1, 2, 3])).overlaps == {A: Overlap(1, 2, 0), B: Overlap(1, 0, 0)}
    tree.drop_draft(A1)
    tree.adopt(A1)
    tree.adopt(B)  # for which nothing was drafted
    assert tree.workers() == [A]
    tree.clear_portion()
    assert sorted(tree.dump()) == [(A, Tier.DEVICE, hash_array([1])), (A, Tier.HOST, tree.held(A, Tier.HOST))]
    assert len(tree) == 3


def test_slots_are_used_again(tree: RadixTree) -> None:
    for number in range(100):
        tree.draft(A, hash_array([number]))
        tree.adopt(A)
        tree.clear_portion()
        tree.apply(B, AllBlocksCleared())
        tree.store(B, hash_array([number]))
    assert len(tree._workers) <= 4
    assert len(tree) == 1


def test_many_blocks_that_go_are_found_no_more_at_once(tree: RadixTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """And cleared away with what happens after that, whatever it is."""
    monkeypatch.setattr(retired_slots, "PORTION_BLOCKS", 10)
    tree.store(A, hash_array(range(100)))
    tree.store(B, hash_array([200]))
    tree.apply(A, AllBlocksCleared())
    assert len(tree) == 91
    assert not tree.held(A)
    assert tree.find_matches(hash_array([0, 1])).scores == {}
    assert tree.find_matches(hash_array([200])).scores == {B: 1}
    tree.store(B, hash_array([200]))
    tree.draft(B, hash_array([200]))
    tree.remove(B, hash_array([8]))
    tree.clear(A1)
    tree.remove_worker(A1)
    tree.clear_portion()
    assert len(tree) == 31
    for _ in range(4):
        tree.clear_portion()
    assert len(tree) == 1


def test_what_is_known(tree: RadixTree) -> None:
    tree.store(A, hash_array([1, 2]))
    tree.store(A, hash_array([2]), Tier.DISK)
    tree.store(B, hash_array([3]), Tier.HOST)
    assert sorted(tree.held(A)) == [1, 2]
    assert list(tree.held(A, Tier.DISK)) == [2]
    assert len(tree) == 3
    dump = {(worker, tier): sorted(hashes) for worker, tier, hashes in tree.dump()}
    assert dump == {(A, Tier.DEVICE): [1, 2], (A, Tier.DISK): [2], (B, Tier.HOST): [3]}


def test_a_dump_makes_an_equal_tree(tree: RadixTree) -> None:
    for worker in (A, B, A1):
        for tier in Tier:
            tree.store(worker, hash_array(range(worker.dp_rank, 5 + tier)), tier)
    copy = RadixTree()
    for worker, tier, hashes in tree.dump():
        copy.apply(worker, BlockStored(hashes_to_bytes(hashes), tier))
    assert copy.find_matches(hash_array(range(9))) == tree.find_matches(hash_array(range(9)))
    assert len(copy) == len(tree)


def test_limit() -> None:
    tree = RadixTree(max_blocks=2)
    tree.store(A, hash_array([1, 2, 3]))
    assert len(tree) == 2
    assert tree.pruned == 1
    assert tree.find_matches(hash_array([1, 2, 3])).scores == {A: 2}


def test_hash_and_match(tree: RadixTree) -> None:
    prompt = token_array(range(70))
    hashes = sequence_hashes(prompt, 16)
    tree.store(A, hashes[:3])
    assert tree.hash_and_match(prompt, 16) == (hashes, tree.find_matches(hashes))
    other, found = tree.hash_and_match(prompt, 16, HASH_SEED + 1)
    assert other == sequence_hashes(prompt, 16, HASH_SEED + 1)
    assert found.scores == {}
