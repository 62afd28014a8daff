"""Each rule of the manager, as a scenario."""

import pytest

from dynamo.errors import ConfigError, InvalidRequestError
from dynamo.kvbm.effects import Change, Forget, Write
from dynamo.kvbm.manager import BlockManager, ManagerConfig
from dynamo.protocols.kvbm import StorageTier

from .memory_world import MemoryWorld, key_of


def config(
    *,
    policy: str = "lru",
    disk_filter: str = "none",
    disk_offload: str = "write-through",
    fetches_max: int = 64,
    writes_max: int = 32,
    queue_max: int = 4096,
) -> ManagerConfig:
    return ManagerConfig(
        slot_bytes=4096,
        policy=policy,
        disk_filter=disk_filter,
        disk_offload=disk_offload,
        grant_slots=2,
        fetches_max=fetches_max,
        writes_max=writes_max,
        queue_max=queue_max,
    )


def world_with(
    settings: ManagerConfig, slots: int, disk: int | None = None, *others: StorageTier, holds: int = 0
) -> MemoryWorld:
    """One engine, session 1; the disk holds blocks 0 to `holds`, exclusive."""
    world = MemoryWorld(settings, slots, disk, *others)
    world.disk = {place: key_of(place) for place in range(holds)}
    for tier in ([] if disk is None else [StorageTier.DISK]) + list(others):
        world.open(tier)
    world.attach(1)
    return world


def fill(world: MemoryWorld, *names: int) -> None:
    """One after the other, as slots are granted."""
    for name in names:
        world.fill(1, name)


def host(world: MemoryWorld) -> set[int]:
    return world.names[StorageTier.HOST]


def test_a_stored_block_is_found_by_others() -> None:
    world = world_with(config(), 4)
    world.attach(2)
    fill(world, 0, 1)
    answer = world.look_up(2, 7, 0, 1, 2)
    assert answer is not None
    assert [world.slots[slot] for slot in answer.slots] == [key_of(0), key_of(1)]
    assert (answer.coming, answer.tiers) == (0, (2, 0, 0, 0))


def test_what_peers_ask_for_is_neither_hit_nor_missed_here() -> None:
    world = world_with(config(), 4, 4)
    fill(world, 0)
    world.manager.attach(2, fills=False)
    world.manager.look_up(2, 7, [key_of(0), key_of(1)], 0.0, 0.0)
    figures = world.manager.figures
    assert figures.lookups == 0
    assert {tier: (counted.hits, counted.misses) for tier, counted in figures.tiers.items()} == dict.fromkeys(
        figures.tiers, (0, 0)
    )


def test_a_block_stored_twice_takes_one_slot() -> None:
    world = world_with(config(), 4)
    fill(world, 0, 0, 0)
    assert [block.name for block in world.manager.snapshot(StorageTier.HOST)] == [0]
    assert world.manager.figures.tiers[StorageTier.HOST].stored_blocks == 1


def test_the_last_block_of_a_prompt_goes_first() -> None:
    world = world_with(config(), 6)
    fill(world, 0, 1, 2, 3, 4)
    world.look_up(1, 1, 0, 1, 2, 3, 4)
    world.release(1, 1)
    fill(world, 10)
    assert host(world) == {0, 1, 2, 3, 10}


def test_what_is_pinned_is_not_evicted_and_then_nothing_is_granted() -> None:
    world = world_with(config(), 4)
    fill(world, 0, 1, 2)
    world.look_up(1, 1, 0, 1, 2)
    world.attach(2)
    assert not world.engines[2].granted
    world.release(1, 1)
    assert len(world.engines[2].granted) == 1
    assert host(world) == {0, 1}


def test_what_a_session_held_is_free_when_it_is_gone() -> None:
    world = world_with(config(), 4)
    fill(world, 0, 1, 2)
    world.look_up(1, 1, 0, 1, 2)
    world.attach(2)
    world.detach(1)  # its granted slot and its pins
    for name in (3, 4, 5):
        world.fill(2, name)
    assert host(world) == {3, 4, 5}


def test_a_session_writes_and_releases_only_what_is_its_own() -> None:
    world = world_with(config(), 4)
    fill(world, 0)
    world.look_up(1, 1, 0)
    manager = world.manager
    with pytest.raises(InvalidRequestError):
        manager.discard(1, [99])
    with pytest.raises(InvalidRequestError):
        manager.release(1, [1, 1], 1.0)
    with pytest.raises(InvalidRequestError):
        manager.release(1, [1, 2], 1.0)
    with pytest.raises(InvalidRequestError):
        manager.look_up(1, 1, [], 0.0, 1.0)
    with pytest.raises(InvalidRequestError):
        manager.look_up(2, 1, [], 0.0, 1.0)
    with pytest.raises(InvalidRequestError):
        manager.attach(1)
    world.release(1, 1)  # nothing was released before


def test_the_disk_is_waited_for_and_each_block_fetched_once() -> None:
    world = world_with(config(), 8, 8, holds=4)
    first = world.look_up(1, 1, 0, 1, 2, 9)
    second = world.look_up(1, 2, 0, 1)
    assert first is not None
    assert second is not None
    assert (first.slots, first.coming, second.coming) == ((), 3, 2)
    assert len(world.fetches) == 3
    world.run()
    last = world.answer(1, 1)
    assert last is not None
    assert (len(last.slots), last.coming, last.tiers) == (3, 0, (0, 3, 0, 0))
    again = world.look_up(1, 3, 0, 1, 2)
    assert again is not None
    assert again.tiers == (3, 0, 0, 0)


def test_a_late_lookup_gets_what_has_come() -> None:
    world = world_with(config(), 8, 8, holds=3)
    world.look_up(1, 1, 0, 1, 2, wait_s=0.2)
    world.end_fetch(world.fetches[0])
    world.end_fetch(world.fetches[1])  # the third, which is of no use without the second
    assert world.manager.next_tick_s() == pytest.approx(world.now_s + 0.2)
    world.wait(0.2)
    answer = world.answer(1, 1)
    assert answer is not None
    assert (len(answer.slots), answer.coming) == (1, 0)
    assert world.manager.figures.late_lookups == 1
    world.run()
    assert host(world) == {0, 1, 2}


def test_a_lookup_for_which_there_is_no_time_is_counted_as_late() -> None:
    """Not all that there is was even begun: a tier takes longer for it than the lookup may wait."""
    world = world_with(config(), 8, 8, holds=4)
    world.look_up(1, 1, 0)
    world.end_fetch(world.fetches[0])  # which takes 10 ms
    assert world.manager.figures.late_lookups == 0
    answer = world.look_up(1, 2, 1, 2, 3, wait_s=0.025)
    assert answer is not None
    assert answer.coming == 2
    world.run()
    assert world.manager.figures.late_lookups == 1


def test_each_block_that_a_tier_was_asked_for_is_a_hit_or_a_miss() -> None:
    """What does not come in time, or comes and is not what was written, is a miss."""
    world = world_with(config(), 8, 8, StorageTier.OBJECT, holds=3)
    world.store[StorageTier.OBJECT] = {key_of(3)}
    world.look_up(1, 1, 0, 1, 2, 3, 4, wait_s=0.2)
    world.end_find(world.finds[0])
    for _ in range(2):
        world.end_fetch(world.fetches[0])
    world.wait(0.2)
    counted = {tier: (figures.hits, figures.misses) for tier, figures in world.manager.figures.tiers.items()}
    assert counted == {StorageTier.HOST: (0, 5), StorageTier.DISK: (2, 3), StorageTier.OBJECT: (0, 2)}

    world = world_with(config(), 8, 8, StorageTier.OBJECT, holds=2)
    world.store[StorageTier.OBJECT] = {key_of(2)}
    world.look_up(1, 1, 0, 1, 2)
    world.end_find(world.finds[0])
    world.end_fetch(world.fetches[1], corrupt=True)
    world.run()
    counted = {tier: (figures.hits, figures.misses) for tier, figures in world.manager.figures.tiers.items()}
    assert counted == {StorageTier.HOST: (0, 3), StorageTier.DISK: (1, 2), StorageTier.OBJECT: (0, 1)}

    world = world_with(config(), 8, None, StorageTier.OBJECT)
    world.look_up(1, 1, 0, 1, wait_s=0.2)
    world.wait(0.2)  # the store does not answer
    assert world.manager.figures.tiers[StorageTier.OBJECT].misses == 2


def test_a_corrupt_block_is_a_miss_and_leaves_the_disk() -> None:
    world = world_with(config(), 8, 8, holds=3)
    world.look_up(1, 1, 0, 1, 2)
    world.log.clear()
    world.end_fetch(world.fetches[1], corrupt=True)
    assert [effect.block.name for effect in world.log if isinstance(effect, Forget)] == [1]
    assert Change(StorageTier.DISK, (), (1,)) in world.log
    world.run()
    answer = world.answer(1, 1)
    assert answer is not None
    assert (len(answer.slots), answer.coming) == (1, 0)
    assert world.manager.figures.tiers[StorageTier.DISK].checksum_failures == 1
    assert 1 not in world.names[StorageTier.DISK] | host(world)


def test_an_absent_block_leaves_the_books() -> None:
    world = world_with(config(), 8, 8, holds=2)
    del world.disk[0]
    world.look_up(1, 1, 0, 1)
    world.run()
    answer = world.answer(1, 1)
    assert answer is not None
    assert (answer.slots, answer.coming) == ((), 0)
    assert world.names[StorageTier.DISK] == {1}


def test_a_tier_that_failed_is_left_alone_for_a_while() -> None:
    world = world_with(config(), 8, 8, holds=3)
    world.look_up(1, 1, 0)
    world.end_fetch(world.fetches[0], failed=True)
    answer = world.look_up(1, 2, 0, 1)
    assert answer is not None
    assert (answer.slots, answer.coming) == ((), 0)
    world.wait(1.0)
    probe = world.look_up(1, 3, 0, 1)
    assert probe is not None
    assert probe.coming == 1  # a small attempt first
    world.run()
    whole = world.look_up(1, 4, 0, 1, 2)
    assert whole is not None
    assert len(whole.slots) + whole.coming == 3


def test_object_store_and_peer_are_asked_in_turn() -> None:
    world = world_with(config(), 8, 2, StorageTier.OBJECT, StorageTier.PEER, holds=1)
    world.store[StorageTier.OBJECT] = {key_of(1), key_of(2)}
    world.store[StorageTier.PEER] = {key_of(3)}
    first = world.look_up(1, 1, 0, 1, 2, 3, 4)
    assert first is not None
    assert first.coming == 5  # it is not known yet
    assert [find.tier for find in world.finds] == [StorageTier.OBJECT]
    world.run()
    answer = world.answer(1, 1)
    assert answer is not None
    assert (answer.coming, answer.tiers) == (0, (0, 1, 2, 1))
    assert host(world) == {0, 1, 2, 3}  # with the names that their headers say


def test_a_find_that_is_not_answered_ends_with_the_deadline() -> None:
    world = world_with(config(), 8, None, StorageTier.OBJECT)
    world.store[StorageTier.OBJECT] = {key_of(0)}
    world.look_up(1, 1, 0, wait_s=0.3)
    world.wait(0.3)
    answer = world.answer(1, 1)
    assert answer is not None
    assert (answer.slots, answer.coming) == ((), 0)
    world.end_find(world.finds[0])
    assert not world.fetches


def test_a_slow_tier_is_not_asked_but_for_a_probe_now_and_then() -> None:
    world = world_with(config(), 8, None, StorageTier.OBJECT)
    for lookup in range(3):
        world.look_up(1, lookup, 10 + lookup, wait_s=0.5)
        world.wait(0.5)
        world.finds.clear()
    asked = 0
    for lookup in range(10, 30):
        answer = world.look_up(1, lookup, lookup, wait_s=0.1)
        assert answer is not None
        asked += answer.coming
        world.wait(0.5)
    assert 1 <= asked <= 3
    assert world.manager.figures.tiers[StorageTier.OBJECT].misses >= 17


def test_fetches_are_bounded_and_a_long_prompt_comes_in_turns() -> None:
    world = world_with(config(fetches_max=2), 16, 8, holds=6)
    answer = world.look_up(1, 1, 0, 1, 2, 3, 4, 5)
    assert answer is not None
    assert answer.coming == 6
    assert len(world.fetches) == 2
    world.run()
    answer = world.answer(1, 1)
    assert answer is not None
    assert len(answer.slots) == 6


def test_a_lookup_ends_where_no_slot_is_to_be_had() -> None:
    world = world_with(config(), 4, 8, holds=6)
    world.look_up(1, 1, 0, 1, 2, 3, 4, 5)
    world.run()
    answer = world.answer(1, 1)
    assert answer is not None
    assert (len(answer.slots), answer.coming) == (3, 0)  # one slot is granted


def test_a_commit_serves_who_waits_for_the_disk() -> None:
    world = world_with(config(), 8, 8, holds=1)
    world.look_up(1, 1, 0)
    fill(world, 0)
    answer = world.answer(1, 1)
    assert answer is not None
    assert (len(answer.slots), answer.tiers) == (1, (1, 0, 0, 0))
    world.run()
    assert [block.name for block in world.manager.snapshot(StorageTier.HOST)] == [0]


def test_write_through_writes_what_was_used_again() -> None:
    world = world_with(config(disk_filter="frequency"), 8, 8)
    fill(world, 0, 1)
    assert not world.writes
    world.look_up(1, 1, 0)
    assert [write.copy.block.name for write in world.writes] == [0]
    world.run()
    assert world.names[StorageTier.DISK] == {0}


def test_on_evict_writes_a_block_before_it_goes() -> None:
    world = world_with(config(disk_offload="on-evict"), 3, 8)
    fill(world, 0, 1, 2)
    assert [write.copy.block.name for write in world.writes] == [0]
    assert not world.engines[1].granted
    assert 0 in host(world)
    world.run()
    assert host(world) == {1, 2}
    assert world.names[StorageTier.DISK] == {0}
    assert len(world.engines[1].granted) == 1


def test_a_block_that_is_used_while_it_leaves_stays() -> None:
    world = world_with(config(disk_offload="on-evict"), 3, 8)
    fill(world, 0, 1, 2)
    world.look_up(1, 1, 0)
    world.run()
    assert 0 in host(world)


def test_a_block_that_is_being_written_keeps_its_slot() -> None:
    world = world_with(config(), 3, 8)
    fill(world, 0, 1, 2)
    assert len(world.writes) == 3
    assert not world.engines[1].granted
    world.end_write(world.writes[0], good=False)
    assert len(world.engines[1].granted) == 1


def test_onboarding_goes_before_offloading() -> None:
    world = world_with(config(writes_max=16), 48, 48, holds=1)
    world.look_up(1, 1, 0)
    fill(world, *range(10, 30))
    assert len(world.writes) == 2
    for fetch in world.fetches[:]:
        world.end_fetch(fetch)
    assert len(world.writes) == 16


def test_the_queue_down_is_bounded_and_drops_the_oldest() -> None:
    world = world_with(config(writes_max=1, queue_max=2), 16, 16)
    fill(world, 0, 1, 2, 3, 4)
    assert world.manager.figures.dropped_writes == 2
    world.run()
    assert world.names[StorageTier.DISK] == {0, 3, 4}


def test_a_full_disk_forgets_one_block_for_the_next() -> None:
    world = world_with(config(), 8, 2)
    for name in range(3):
        fill(world, name)
        world.run()
    assert world.names[StorageTier.DISK] == {1, 2}
    assert set(world.disk.values()) == {key_of(1), key_of(2)}
    assert world.manager.figures.tiers[StorageTier.DISK].evicted_blocks == 1


def test_a_lost_tier_is_not_used_until_it_is_opened_again() -> None:
    world = world_with(config(), 8, 8, holds=2)
    world.manager.tier_lost(StorageTier.DISK, world.now_s)
    world.settle()
    assert world.names[StorageTier.DISK] == set()
    fill(world, 5)
    answer = world.look_up(1, 1, 0)
    assert answer is not None
    assert (answer.coming, world.writes, world.fetches) == (0, [], [])
    world.open()
    assert world.names[StorageTier.DISK] == {0, 1}


def test_clear_forgets_all_and_keeps_what_is_read() -> None:
    world = world_with(config(), 8, 8)
    fill(world, 0, 1)
    world.run()
    answer = world.look_up(1, 1, 0)
    assert answer is not None
    world.manager.clear([StorageTier.HOST, StorageTier.DISK], world.now_s)
    world.disk.clear()
    world.settle()
    assert (host(world), world.names[StorageTier.DISK]) == (set(), set())
    assert world.slots[answer.slots[0]] == key_of(0)
    world.release(1, 1)
    missing = world.look_up(1, 2, 0)
    assert missing is not None
    assert (missing.slots, missing.coming) == ((), 0)


def test_a_write_that_was_under_way_when_the_disk_was_cleared_is_forgotten() -> None:
    world = world_with(config(), 8, 8)
    fill(world, 0)
    world.manager.clear([StorageTier.DISK], world.now_s)
    world.settle()
    world.run()
    assert (world.disk, world.names[StorageTier.DISK]) == ({}, set())


def test_names_are_told_once_for_many_blocks() -> None:
    world = world_with(ManagerConfig(slot_bytes=4096), 1024)
    world.log.clear()
    world.fill(1, *range(20))
    assert [effect for effect in world.log if isinstance(effect, Change)] == [
        Change(StorageTier.HOST, tuple(range(20)), ())
    ]


def test_figures_say_what_there_is() -> None:
    world = world_with(config(), 8, 8)
    fill(world, 0, 1)
    world.run()
    world.look_up(1, 1, 0, 1, 2)
    on_host, on_disk = world.manager.tier_figures()
    assert (on_host.blocks, on_host.hits, on_host.misses, on_host.capacity_bytes) == (2, 2, 1, 8 * 4096)
    assert (on_disk.blocks, on_disk.misses, on_disk.written_bytes, on_disk.state) == (2, 1, 8192, "ready")


def test_a_write_that_failed_is_tried_again_after_a_pause() -> None:
    world = world_with(config(writes_max=1), 8, 8)
    fill(world, 0, 1, 2)
    world.end_write(world.writes[0], good=False)
    assert not world.writes
    due_s = world.manager.next_tick_s()
    assert due_s == pytest.approx(world.now_s + 1.0)
    world.wait(1.0)
    assert [type(write) for write in world.writes] == [Write]


def test_unknown_policies_are_config_errors() -> None:
    for wrong in (config(policy="x"), config(disk_filter="x"), config(disk_offload="x")):
        with pytest.raises(ConfigError):
            BlockManager(wrong, [], 4)


def test_a_disk_that_hangs_is_not_waited_for_for_long() -> None:
    """Its reads do not even fail."""
    world = world_with(config(), 64, 64, holds=64)
    waited = []
    for number in range(30):
        answer = world.look_up(1, number, number, wait_s=0.5)
        assert answer is not None
        waited.append(answer.coming > 0)
        world.wait(0.6)
    assert waited[0]
    assert sum(waited[10:]) <= 3, "one block now and then, to see whether it is back"
