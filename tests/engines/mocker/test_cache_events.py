from hypothesis import given
from hypothesis import strategies as st

from dynamo.engines.mocker.cache_events import CacheEvents
from dynamo.protocols.generation import WorkerId
from dynamo.protocols.kv_events import BlockRemoved, BlockStored
from dynamo.router.radix_tree import RadixTree
from dynamo.tokens import hash_array, hashes_to_bytes


def test_neighbours_of_one_kind_are_one_event() -> None:
    events = CacheEvents()
    events.stored([1, 2], None)
    events.stored([3], 2)
    events.removed([1])
    events.removed([2])
    events.stored([2**64 - 1], None)
    assert events.take() == [
        BlockStored(hashes_to_bytes(hash_array([1, 2, 3]))),
        BlockRemoved(hashes_to_bytes(hash_array([1, 2]))),
        BlockStored(hashes_to_bytes(hash_array([2**64 - 1]))),
    ]
    assert events.take() == []


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 9), max_size=4), st.booleans())))
def test_a_listener_ends_with_what_is_there(steps: list[tuple[bool, list[int], bool]]) -> None:
    events, tree, present = CacheEvents(), RadixTree(), set[int]()
    worker = WorkerId(1)
    for storing, hashes, taking in [*steps, (True, [], True)]:
        if storing:
            events.stored(hashes, None)
            present.update(hashes)
        else:
            events.removed(hashes)
            present.difference_update(hashes)
        if taking:
            for event in events.take():
                tree.apply(worker, event)
            assert set(tree.held(worker)) == present
