"""Conversations that together need several times the device's cache, turn by turn, with and without tiers."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from benchmarks.kvbm_engine import BLOCK_BYTES, BLOCK_TOKENS, Engine, engine
from benchmarks.kvbm_prompts import turns
from benchmarks.kvbm_service import block_manager

CONVERSATIONS, TURNS = 20, 6
QUESTION_TOKENS, ANSWER_TOKENS = 100, 12
DEVICE_SHARE = 4  # how many times the device's cache all conversations need
AT_ONCE = 2
_HOST_ONLY = ("--kvbm-host-gb", "0.6")  # for all of them
_SMALL_HOST = ("--kvbm-host-gb", "0.1", "--kvbm-disk-gb", "4", "--kvbm-disk-filter", "none")


@dataclass(frozen=True, slots=True)
class Run:
    """All turns of all conversations, once."""

    ttft_s: tuple[float, ...]  # of turns after the first
    elapsed_s: float
    tokens: int  # asked and answered, but for what was said before
    cached_share: float  # of the tokens of prompts

    @property
    def mean_ttft_s(self) -> float:
        return mean(self.ttft_s)


def device_blocks() -> int:
    """Of the device's cache."""
    whole = TURNS * (QUESTION_TOKENS + ANSWER_TOKENS)
    return CONVERSATIONS * whole // DEVICE_SHARE // BLOCK_TOKENS


async def measure(model: str, directory: Path, rounds: int) -> dict[str, list[Run]]:
    """Each round has other conversations; the engines take turns in each."""
    found: dict[str, list[Run]] = {}
    for number in range(rounds):
        for name, flags in _setups(directory / str(number)).items():
            found.setdefault(name, []).append(await _run(model, directory / f"{number}-{len(flags)}", flags, number))
    return found


def table(found: Mapping[str, Sequence[Run]]) -> str:
    """A markdown table, medians of the rounds."""
    lines = [
        "| tiers | mean TTFT ms, turns 2 to 6 | tokens/s | of the prompts' tokens cached | TTFT, none ÷ this |",
        "|---|--:|--:|--:|--:|",
    ]
    none_s = median(run.mean_ttft_s for run in found["none"])
    for name, runs in found.items():
        ttft_s = median(run.mean_ttft_s for run in runs)
        rate = median(run.tokens / run.elapsed_s for run in runs)
        cached = median(run.cached_share for run in runs)
        lines.append(f"| {name} | {1e3 * ttft_s:.0f} | {rate:.0f} | {100 * cached:.0f} % | {none_s / ttft_s:.1f} |")
    return "\n".join(lines)


def _setups(directory: Path) -> dict[str, tuple[str, ...]]:
    return {
        "none": (),
        "host": _HOST_ONLY,
        "small host, disk": (*_SMALL_HOST, "--kvbm-disk-dir", str(directory / "disk")),
    }


async def _run(model: str, directory: Path, flags: Sequence[str], seed: int) -> Run:
    device = ("--kv-cache-memory-bytes", str(device_blocks() * BLOCK_BYTES))
    if not flags:
        async with engine(model, device) as served:
            return await _converse(served, seed)
    with block_manager(directory, *flags) as manager:
        async with engine(model, (*device, *manager.flags)) as served:
            return await _converse(served, seed)


async def _converse(served: Engine, seed: int) -> Run:
    histories: list[list[int]] = [[] for _ in range(CONVERSATIONS)]
    ttft_s: list[float] = []
    prompted = cached = 0
    began_s = time.perf_counter()
    for turn, questions in enumerate(zip(*turns(CONVERSATIONS, TURNS, QUESTION_TOKENS, seed), strict=True)):
        for history, question in zip(histories, questions, strict=True):
            history += question
        answers = await served.ask_all(histories, ANSWER_TOKENS, AT_ONCE)
        for history, answer in zip(histories, answers, strict=True):
            prompted += len(history)
            cached += answer.cached_tokens
            history += answer.token_ids
        if turn:
            ttft_s += [answer.ttft_s for answer in answers]
    return Run(
        ttft_s=tuple(ttft_s),
        elapsed_s=time.perf_counter() - began_s,
        tokens=sum(map(len, histories)),
        cached_share=cached / prompted,
    )
