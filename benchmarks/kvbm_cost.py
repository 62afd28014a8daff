"""What the tiers cost where they cannot help: no prompt was ever seen before. Two engines take turns."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.kvbm_engine import Engine, engine
from benchmarks.kvbm_hooks import HookFigures, read_figures
from benchmarks.kvbm_prompts import unique_prompts
from benchmarks.kvbm_service import block_manager

PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 8, 500, 32  # of a turn
PAIRS = 9


@dataclass(frozen=True, slots=True)
class Pair:
    """Tokens per second, asked and answered, without and with tiers; one right after the other."""

    without: float
    tiers: float


@dataclass(frozen=True, slots=True)
class Cost:
    pairs: tuple[Pair, ...]
    hooks: dict[str, HookFigures]  # by role
    busy_s: float  # how long the engine with tiers was at work


async def measure(model: str, directory: Path, pairs: int) -> Cost:
    found, busy_s = list[Pair](), 0.0
    prompts = unique_prompts(PROMPT_TOKENS, seed=3)
    hooks = directory / "hooks"
    hooks.mkdir(parents=True)
    with block_manager(directory, "--kvbm-host-gb", "1") as manager:
        async with engine(model) as without, engine(model, manager.flags, str(hooks)) as tiers:
            await _rate(without, [next(prompts)])  # what is slow the first time only
            await _rate(tiers, [next(prompts)])
            before = read_figures(hooks)
            for number in range(pairs):
                turn = [[next(prompts) for _ in range(PROMPTS)] for _ in range(2)]
                order = (without, tiers) if number % 2 == 0 else (tiers, without)
                rates = {served: await _rate(served, asked) for served, asked in zip(order, turn, strict=True)}
                found.append(Pair(rates[without], rates[tiers]))
                busy_s += PROMPTS * (PROMPT_TOKENS + ANSWER_TOKENS) / rates[tiers]
    after = read_figures(hooks)
    return Cost(tuple(found), {role: _since(before.get(role), figures) for role, figures in after.items()}, busy_s)


def report(cost: Cost) -> str:
    ratios = sorted(pair.tiers / pair.without for pair in cost.pairs)
    lines = ["| pair | tokens/s without | with | ratio |", "|--:|--:|--:|--:|"]
    for number, pair in enumerate(cost.pairs, 1):
        lines.append(f"| {number} | {pair.without:.0f} | {pair.tiers:.0f} | {pair.tiers / pair.without:.3f} |")
    lines += ["", f"median ratio {median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}"]
    for role, hooks in sorted(cost.hooks.items()):
        lines.append(
            f"hooks in the {role}'s thread: {100 * hooks.cpu_s / cost.busy_s:.2f} % of the time as CPU,"
            f" {100 * hooks.wall_s / cost.busy_s:.2f} % as time"
        )
    return "\n".join(lines)


def _since(before: HookFigures | None, after: HookFigures) -> HookFigures:
    if before is None:
        return after
    return HookFigures(after.role, after.cpu_s - before.cpu_s, after.wall_s - before.wall_s, after.calls - before.calls)


async def _rate(served: Engine, prompts: Sequence[Sequence[int]]) -> float:
    began_s = time.perf_counter()
    await served.ask_all(prompts, ANSWER_TOKENS, at_once=len(prompts))
    return len(prompts) * (PROMPT_TOKENS + ANSWER_TOKENS) / (time.perf_counter() - began_s)
