"""How fast blocks move between a paged KV cache and the pool's memory, beside memcpy of the same bytes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from dynamo.engines.vllm.kvbm_copier import CpuCopier
from dynamo.kvbm.jobs import Load, Save
from dynamo.kvbm.slot import HEADER_BYTES, slot_bytes

LAYERS, LAYER_BYTES = 30, 24576  # of a block: SmolLM2's 30 layers, 32 tokens, bfloat16
BLOCKS = 47  # of a prompt of 1500 tokens
CACHE_BLOCKS, SLOTS = 1024, 512
ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Speeds:
    """GB/s, in the order of the rounds."""

    gather: tuple[float, ...]
    scatter: tuple[float, ...]
    memcpy: tuple[float, ...]


def measure(rounds: int = ROUNDS) -> Speeds:
    """Other blocks and slots in each round, none of which lie side by side."""
    chance = np.random.default_rng(4)
    size_bytes = LAYERS * LAYER_BYTES
    cache = np.ones((LAYERS, CACHE_BLOCKS, LAYER_BYTES), np.uint8)
    pool = np.ones((SLOTS, slot_bytes(size_bytes)), np.uint8)
    copier = CpuCopier([cache], pool[:, HEADER_BYTES : HEADER_BYTES + size_bytes])
    source, target = np.ones(BLOCKS * size_bytes, np.uint8), np.ones(BLOCKS * size_bytes, np.uint8)
    gather, scatter, memcpy = list[float](), list[float](), list[float]()
    try:
        for number in range(rounds):
            blocks = tuple(chance.permutation(CACHE_BLOCKS)[:BLOCKS].tolist())
            slots = tuple(chance.permutation(SLOTS)[:BLOCKS].tolist())
            save, load = Save(3 * number, "", blocks, slots), Load(3 * number + 1, "", "", blocks, slots)
            gather.append(_gb_s(lambda save=save: _save(copier, save)))  # type: ignore[misc]
            last = Save(3 * number + 2, "", blocks[:1], slots[:1])
            scatter.append(_gb_s(lambda load=load, last=last: _load(copier, load, last)))  # type: ignore[misc]
            memcpy.append(_gb_s(lambda: np.copyto(target, source)))
    finally:
        copier.close()
    return Speeds(tuple(gather), tuple(scatter), tuple(memcpy))


def report(speeds: Speeds) -> str:
    plain = median(speeds.memcpy)
    lines = ["| | GB/s | of memcpy |", "|---|--:|--:|"]
    rows: Sequence[tuple[str, Sequence[float]]] = (
        ("cache to pool (gather)", speeds.gather),
        ("pool to cache (scatter)", speeds.scatter),
        ("memcpy", speeds.memcpy),
    )
    lines += [f"| {name} | {median(found):.1f} | {median(found) / plain:.2f} |" for name, found in rows]
    return "\n".join(lines)


def _save(copier: CpuCopier, save: Save) -> None:
    copier.save(save)
    copier.fence([save.id])


def _load(copier: CpuCopier, load: Load, last: Save) -> None:
    """Loads go first, and only saves can be waited for: with `last`, of one block, it is done."""
    copier.load(load)
    _save(copier, last)


def _gb_s(copy: Callable[[], None]) -> float:
    began_s = time.perf_counter()
    copy()
    return BLOCKS * LAYERS * LAYER_BYTES / (time.perf_counter() - began_s) / 1e9
