"""Every scenario file goes as it says. The worlds' modules say which commands there are."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from .kv_events import KvEventsWorld
from .scenario import Scenario, World
from .scheduling import SchedulingWorld

WORLDS: dict[str, Callable[[], World]] = {"kv events": KvEventsWorld, "scheduling": SchedulingWorld}
FILES = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_scenario(path: Path) -> None:
    scenario = Scenario.read(path)
    with contextlib.closing(WORLDS[scenario.world]()) as world:
        assert scenario.play(world) == scenario.paragraphs


def test_there_are_some() -> None:
    assert {"affinity", "burst", "foreign", "gap", "prune", "queue", "restart", "tier"} <= {path.stem for path in FILES}
