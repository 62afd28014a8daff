"""Every scenario file goes as it says."""

from pathlib import Path

import pytest

from .scenario import Play, Scenario

FILES = sorted((Path(__file__).parent / "scenarios").glob("*.json"))
NAMES = {
    "aggregated",
    "budget_cut",
    "burst",
    "connector_error",
    "convert",
    "flapping_metrics",
    "lost_worker",
    "manual_change",
    "never_ends",
    "never_ready",
    "ramp",
    "unknown_engine",
    "zero_traffic",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    Play(Scenario.read(path)).run()


def test_there_are_all() -> None:
    assert {path.stem for path in FILES} == NAMES
