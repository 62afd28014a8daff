"""What routers hear of the block manager's pool beside an engine's own events."""

from hypothesis import given
from hypothesis import strategies as st

from dynamo.engines.kvbm_sink import PART_BLOCKS, TieredSink
from dynamo.protocols.generation import WorkerId
from dynamo.protocols.kv_events import AllBlocksCleared, BlockStored, KvEventBatch, Tier
from dynamo.protocols.kvbm import StorageTier, TierChanges
from dynamo.router.indexer import KvIndexer
from dynamo.tokens import hash_array, hashes_to_bytes

INSTANCE = 1


class Router:
    """A KvEventSink that keeps what it hears as routers do."""

    def __init__(self) -> None:
        self.indexer = KvIndexer()
        self.batches: list[KvEventBatch] = []
        self.closed = False

    def publish(self, batch: KvEventBatch) -> None:
        self.batches.append(batch)
        self.indexer.apply(INSTANCE, batch)

    def close(self) -> None:
        self.closed = True

    def held(self, tier: Tier, dp_rank: int = 0) -> set[int]:
        return set(self.indexer.tree.held(WorkerId(INSTANCE, dp_rank), tier))


def names(*values: int) -> bytes:
    return hashes_to_bytes(hash_array(values))


def test_the_engines_events_pass_unchanged() -> None:
    router = Router()
    sink = TieredSink(router)
    batch = KvEventBatch(0, [BlockStored(names(1, 2))])
    sink.publish(batch)
    sink.close()
    assert router.batches == [batch]
    assert router.closed


def test_the_pool_is_told_of_each_rank() -> None:
    router = Router()
    sink = TieredSink(router, ranks=2)
    sink.pool_changed(TierChanges(tier=StorageTier.HOST, stored=names(1, 2), reset=True))
    sink.pool_changed(TierChanges(tier=StorageTier.DISK, stored=names(3), reset=True))
    sink.pool_changed(TierChanges(tier=StorageTier.HOST, removed=names(1)))
    for dp_rank in range(2):
        assert router.held(Tier.HOST, dp_rank) == {2}
        assert router.held(Tier.DISK, dp_rank) == {3}


def test_what_lies_further_away_is_not_told() -> None:
    router = Router()
    sink = TieredSink(router)
    for tier in (StorageTier.OBJECT, StorageTier.PEER):
        sink.pool_changed(TierChanges(tier=tier, stored=names(1)))
    assert not router.batches


def test_an_engine_that_clears_its_cache_does_not_clear_the_pool() -> None:
    router = Router()
    sink = TieredSink(router, ranks=2)
    sink.pool_changed(TierChanges(tier=StorageTier.HOST, stored=names(1, 2)))
    sink.pool_changed(TierChanges(tier=StorageTier.DISK, stored=names(3)))
    sink.publish(KvEventBatch(1, [BlockStored(names(8)), AllBlocksCleared(), BlockStored(names(9))]))
    assert router.held(Tier.DEVICE, 1) == {9}
    assert router.held(Tier.HOST, 1) == {1, 2}
    assert router.held(Tier.DISK, 1) == {3}
    assert all(batch.dp_rank == 1 for batch in router.batches[-3:])


def test_a_new_account_takes_the_place_of_the_old_one() -> None:
    router = Router()
    sink = TieredSink(router)
    sink.pool_changed(TierChanges(tier=StorageTier.HOST, stored=names(1, 2)))
    sink.pool_changed(TierChanges(tier=StorageTier.HOST, stored=names(2, 3), reset=True))
    sink.pool_changed(TierChanges(tier=StorageTier.HOST, stored=names(4)))  # its second part
    assert router.held(Tier.HOST) == {2, 3, 4}


def test_a_lost_pool_is_gone_for_routers() -> None:
    router = Router()
    sink = TieredSink(router, ranks=2)
    sink.publish(KvEventBatch(0, [BlockStored(names(5))]))
    sink.pool_changed(TierChanges(tier=StorageTier.HOST, stored=names(1, 2)))
    sink.pool_lost()
    sink.pool_lost()
    assert router.held(Tier.HOST, 0) == router.held(Tier.HOST, 1) == set()
    assert router.held(Tier.DEVICE, 0) == {5}
    sink.publish(KvEventBatch(0, [AllBlocksCleared()]))
    assert router.held(Tier.HOST, 0) == set()


def test_a_large_pool_is_told_in_parts() -> None:
    router = Router()
    TieredSink(router).pool_changed(TierChanges(tier=StorageTier.HOST, stored=names(*range(PART_BLOCKS + 1))))
    assert [len(batch.events) for batch in router.batches] == [1, 1]
    assert len(router.held(Tier.HOST)) == PART_BLOCKS + 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["changes", "cleared", "lost"]),
            st.sampled_from([StorageTier.HOST, StorageTier.DISK]),
            st.sets(st.integers(0, 5)),
            st.sets(st.integers(0, 5)),
            st.booleans(),
        )
    )
)
def test_routers_know_what_the_service_has_said(
    steps: list[tuple[str, StorageTier, set[int], set[int], bool]],
) -> None:
    router = Router()
    sink = TieredSink(router)
    expected: dict[StorageTier, set[int]] = {StorageTier.HOST: set(), StorageTier.DISK: set()}
    for what, tier, stored, removed, reset in steps:
        removed -= stored
        if what == "cleared":
            sink.publish(KvEventBatch(0, [AllBlocksCleared()]))
        elif what == "lost":
            sink.pool_lost()
            expected = {tier: set() for tier in expected}
        else:
            sink.pool_changed(TierChanges(tier=tier, stored=names(*stored), removed=names(*removed), reset=reset))
            expected[tier] = (set() if reset else expected[tier] - removed) | stored
        assert router.held(Tier.HOST) == expected[StorageTier.HOST]
        assert router.held(Tier.DISK) == expected[StorageTier.DISK]
