"""The time to the first token of a long prompt, by where its KV blocks are. One request at a time."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.kvbm_engine import BLOCK_TOKENS, Answer, Engine, engine
from benchmarks.kvbm_prompts import unique_prompts
from benchmarks.kvbm_service import BlockManager, block_manager
from benchmarks.programs import BenchmarkError
from dynamo.protocols.kvbm import StorageTier
from dynamo.runtime.config import RuntimeConfig

ANSWER_TOKENS = 16
_CLEARED = {
    "host": (),
    "disk": (StorageTier.HOST,),
    "object": (StorageTier.HOST, StorageTier.DISK),
}
_MEMCPY_TIMES = 5


@dataclass(frozen=True, slots=True)
class Samples:
    """TTFT in seconds by place, in the order of the rounds; what the bytes of a prompt need in memory."""

    ttft_s: dict[str, list[float]] = field(default_factory=dict)
    prompt_bytes: list[int] = field(default_factory=list)
    memcpy_s: list[float] = field(default_factory=list)
    like_cold: list[bool] = field(default_factory=list)  # whether the device hit gives the tokens of the cold prompt

    def add(self, place: str, answer: Answer) -> None:
        self.ttft_s.setdefault(place, []).append(answer.ttft_s)


async def measure(model: str, directory: Path, tokens: int, rounds: int) -> Samples:
    """Each round has a prompt of its own, first cold, then from each place.

    Raises BenchmarkError for a token that is not that of a device hit. A cold prompt is computed in other pieces, and
    its rounding can give others, with or without tiers.
    """
    samples = Samples()
    flags = ["--kvbm-host-gb", "1", "--kvbm-disk-gb", "4", "--kvbm-disk-dir", str(directory / "disk")]
    flags += ["--kvbm-object-url", (directory / "objects").as_uri(), "--kvbm-disk-filter", "none"]
    (directory / "objects").mkdir(parents=True)
    with block_manager(directory, *flags) as manager:
        async with engine(model, manager.flags) as served:
            await _rounds(served, manager, samples, tokens, rounds)
    return samples


async def measure_peer(model: str, directory: Path, tokens: int, rounds: int) -> Samples:
    """Of blocks that another block manager of this host holds, over loopback as from another host."""
    samples = Samples()
    runtime = RuntimeConfig(file_kv=str(directory / "discovery"))
    flags = ["--kvbm-host-gb", "1", "--kvbm-peers"]
    with (
        block_manager(directory / "here", *flags, runtime=runtime) as here,
        block_manager(directory / "there", *flags, runtime=runtime) as there,
    ):
        async with engine(model, here.flags) as asked, engine(model, there.flags) as other:
            for prompt, _ in zip(unique_prompts(tokens, seed=1), range(rounds), strict=False):
                before = there.tier(StorageTier.HOST).stored_blocks
                cold = await other.ask(prompt, ANSWER_TOKENS)
                samples.add("cold", cold)
                await there.has_stored(StorageTier.HOST, before + (tokens - 1) // BLOCK_TOKENS)
                device = await other.ask(prompt, ANSWER_TOKENS)
                samples.add("device", device)
                answer = await asked.ask(prompt, ANSWER_TOKENS)
                _check("peer", answer, device, tokens)
                samples.add("peer", answer)
    return samples


def table(samples: Samples) -> str:
    """A markdown table, one place a row."""
    lines = ["| KV blocks | TTFT ms, median | least | most | cold ÷ this |", "|---|--:|--:|--:|--:|"]
    cold_s = median(samples.ttft_s["cold"])
    for place, found in samples.ttft_s.items():
        cells = [f"{1e3 * value:.1f}" for value in (median(found), min(found), max(found))]
        lines.append(f"| {place} | {' | '.join(cells)} | {cold_s / median(found):.1f} |")
    return "\n".join(lines)


def verdicts(samples: Samples) -> list[str]:
    """The figures beside what they are to be."""
    ttft_s = {place: median(found) for place, found in samples.ttft_s.items()}
    lines = [
        f"all tokens of all answers are those of a device hit; in {sum(samples.like_cold)} of {len(samples.like_cold)}"
        " rounds those of the cold prompt too"
    ]
    if "host" in ttft_s:
        memcpy_s = median(samples.memcpy_s)
        limit_s = ttft_s["device"] + 2 * memcpy_s + 0.010
        size_mb = median(samples.prompt_bytes) / 1e6
        lines.append(
            f"host {1e3 * ttft_s['host']:.1f} ms; device hit + 2 x memcpy of {size_mb:.1f} MB ({1e3 * memcpy_s:.1f} ms)"
            f" + 10 ms = {1e3 * limit_s:.1f} ms"
        )
    for place, times in (("host", 20), ("disk", 10)):
        if place in ttft_s:
            lines.append(f"{place}: {ttft_s['cold'] / ttft_s[place]:.1f} x faster than cold, aim {times} x")
    return lines


async def _rounds(served: Engine, manager: BlockManager, samples: Samples, tokens: int, rounds: int) -> None:
    blocks = (tokens - 1) // BLOCK_TOKENS
    await served.ask(next(unique_prompts(tokens, seed=2)), ANSWER_TOKENS)  # what is slow the first time only
    for prompt, _ in zip(unique_prompts(tokens, seed=1), range(rounds), strict=False):
        stored = {tier: manager.tier(tier).stored_blocks for tier in (StorageTier.DISK, StorageTier.OBJECT)}
        cold = await served.ask(prompt, ANSWER_TOKENS)
        samples.add("cold", cold)
        for tier, before in stored.items():
            await manager.has_stored(tier, before + blocks)
        device = await served.ask(prompt, ANSWER_TOKENS)
        samples.add("device", device)
        samples.like_cold.append(device.token_ids == cold.token_ids)
        for place, tiers in _CLEARED.items():
            await served.clear_device()
            if tiers:
                manager.clear(*tiers)
            answer = await served.ask(prompt, ANSWER_TOKENS)
            _check(place, answer, device, tokens)
            samples.add(place, answer)
        size_bytes = blocks * manager.pool().slot_bytes
        samples.prompt_bytes.append(size_bytes)
        samples.memcpy_s.append(_memcpy_s(size_bytes))


def _check(place: str, answer: Answer, device: Answer, tokens: int) -> None:
    if answer.token_ids != device.token_ids:
        raise BenchmarkError(f"{place}: {answer.token_ids} where a device hit gave {device.token_ids}")
    if answer.cached_tokens < (tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS:
        raise BenchmarkError(f"{place}: only {answer.cached_tokens} of {tokens} tokens were found")


def _memcpy_s(size_bytes: int) -> float:
    """Of memory that is mapped already, the best of some times."""
    source, target = np.ones(size_bytes, np.uint8), np.zeros(size_bytes, np.uint8)
    found = []
    for _ in range(_MEMCPY_TIMES):
        began_s = time.perf_counter()
        np.copyto(target, source)
        found.append(time.perf_counter() - began_s)
    return min(found)
