"""What the connector's hooks have cost, as kvbm_timed writes it down in vLLM's processes."""

import os
from pathlib import Path

import msgspec

DIRECTORY = "DYN_BENCH_HOOKS"  # the environment variable that says where the figures go


class HookFigures(msgspec.Struct):
    """Of one process since its start."""

    role: str
    cpu_s: float = 0.0
    wall_s: float = 0.0
    calls: int = 0


def write_figures(directory: Path, figures: HookFigures) -> None:
    """For this process. Whoever reads finds these or those before, never a part."""
    path = directory / f"{os.getpid()}.json"
    unfinished = path.with_suffix(".new")
    unfinished.write_bytes(msgspec.json.encode(figures))
    unfinished.replace(path)


def read_figures(directory: Path) -> dict[str, HookFigures]:
    """By role, of all processes that have written there."""
    found = (msgspec.json.decode(path.read_bytes(), type=HookFigures) for path in directory.glob("*.json"))
    return {figures.role: figures for figures in found}
