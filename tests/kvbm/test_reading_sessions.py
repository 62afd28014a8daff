"""What the service itself asks of the manager: sessions that only read, blocks that a verification has found wrong."""

from dynamo.kvbm.effects import Answer, Change, Forget, Grant, Write
from dynamo.kvbm.manager import BlockManager, ManagerConfig, TierSpec
from dynamo.kvbm.storage.base import Stored
from dynamo.protocols.kvbm import StorageTier

DISK = StorageTier.DISK
CONFIG = ManagerConfig(slot_bytes=4096, disk_filter="none")


def with_one_block() -> tuple[BlockManager, Stored]:
    """In host memory, and on its way to the disk."""
    manager = BlockManager(CONFIG, [TierSpec(tier=DISK, capacity=8)], slots=64)
    manager.tier_opened(DISK, [], 0.0)
    manager.attach(1)
    grant = next(effect for effect in manager.take_effects() if isinstance(effect, Grant))
    manager.commit(1, grant.slots[0], Stored(b"k", 5), 0.0)
    write = next(effect for effect in manager.take_effects() if isinstance(effect, Write))
    return manager, write.copy.block


def test_who_only_reads_is_granted_nothing() -> None:
    manager, _ = with_one_block()
    manager.attach(2, fills=False)
    manager.look_up(2, 0, [b"k", b"other"], 0.0, 0.0)
    effects = [effect for effect in manager.take_effects() if not isinstance(effect, Change)]
    assert [type(effect) for effect in effects] == [Answer]
    assert manager.on_host(b"k") == Stored(b"k", 5)
    assert manager.on_host(b"other") is None
    manager.detach(2)


def test_a_block_that_is_dropped_is_forgotten_and_told_of_once() -> None:
    manager, block = with_one_block()
    assert not manager.drop(DISK, block, 0.0), "it is not there yet"
    manager.written(DISK, block, 0.1, 0.0)
    manager.take_effects()
    assert not manager.drop(DISK, Stored(b"k", 5, 7), 0.0), "another place's"
    assert manager.drop(DISK, block, 0.0)
    assert manager.take_effects() == [Forget(DISK, block), Change(DISK, (), (5,))]
    assert not manager.drop(DISK, block, 0.0)
    assert list(manager.snapshot(DISK)) == []
    assert manager.tier_figures()[1].checksum_failures == 1
