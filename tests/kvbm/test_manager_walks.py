"""Long random walks of the same machine: they come to states that short runs do not."""

import random

import pytest

from dynamo.protocols.kvbm import StorageTier

from .memory_world import TIERS
from .test_manager_properties import ManagerMachine


def _step(machine: ManagerMachine, chance: random.Random) -> None:  # noqa: C901 - one case for each rule
    session, pick, first = chance.randint(1, 2), chance.randrange(1 << 16), chance.randint(0, 5)
    match chance.choices(range(12), [20, 2, 20, 20, 1, 12, 12, 8, 8, 1, 1, 1])[0]:
        case 0:
            machine.fill(session=session, first=first, count=chance.randint(1, 8))
        case 1:
            machine.discard(session=session, pick=pick)
        case 2:
            names = [chance.randint(0, 11) for _ in range(chance.randint(0, 2))]
            machine.look_up(session=session, first=first, count=chance.randint(1, 6), names=names, wait_s=0.5)
        case 3:
            machine.release(session=session, pick=pick)
        case 4:
            machine.restart_engine(session=session)
        case 5 if machine.world.writes:
            machine.end_write(pick=pick, good=chance.random() < 0.9)
        case 6 if machine.world.fetches:
            fate = chance.choices(["read", "failed", "corrupt"], [8, 1, 1])[0]
            machine.end_fetch(pick=pick, fate=fate)
        case 7 if machine.world.finds:
            machine.end_find(pick=pick)
        case 8:
            machine.wait(seconds=chance.choice([0.1, 0.3, 10.0]))
        case 9:
            machine.open_tier(tier=chance.choice(TIERS))
        case 10:
            machine.lose_or_clear(tier=chance.choice(list(StorageTier)), clear=chance.random() < 0.5)
            machine.open_tier(tier=StorageTier.DISK)
        case 11:
            machine.run()


@pytest.mark.parametrize("seed", range(48))
def test_a_long_walk_breaks_no_rule(seed: int) -> None:
    chance = random.Random(seed)
    machine = ManagerMachine()
    machine.build(
        policy=("lru", "tinylfu")[seed % 2],
        disk_filter=("none", "frequency")[seed // 2 % 2],
        offload=("write-through", "on-evict")[seed // 4 % 2],
        slots=chance.randint(2, 10),
        disk=chance.randint(0, 6),
    )
    for _ in range(300):
        _step(machine, chance)
        machine.every_slot_is_accounted_for()
        machine.every_place_is_accounted_for()
        machine.work_is_bounded()
    machine.teardown()
