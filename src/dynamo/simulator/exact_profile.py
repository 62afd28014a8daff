"""What `dynamo profile` would find out about a simulated engine, from its timing model: without error."""

from collections.abc import Iterable, Sequence

from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.timing import TimingModel
from dynamo.planner.profile import DecodePoint, PrefillPoint, Profile

PROMPT_TOKENS = (128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
CONTEXT_TOKENS = (128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
CONCURRENCIES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def exact_profile(engine: SchedulerConfig, timing: TimingModel) -> Profile:
    """Prefill of prompts that are not cached, and decoding, each with nothing else on the worker.

    Raises ValueError when the engine holds no prompt of the shortest length.
    """
    prefill = tuple(_prefill_points(engine, timing))
    if not prefill:
        raise ValueError(f"a context of {engine.context_length} tokens is too short to be profiled")
    return Profile(
        engine="mocker",
        model="simulated",
        max_kv_tokens=engine.num_blocks * engine.block_size,
        prefill=prefill,
        decode=tuple(_decode_points(engine, timing)),
    )


def _prefill_points(engine: SchedulerConfig, timing: TimingModel) -> Iterable[PrefillPoint]:
    for prompt_tokens in _fitting(PROMPT_TOKENS, engine):
        full_s = timing.step_s(new_tokens=engine.max_num_batched_tokens, decoding=False, usage=0)
        yield PrefillPoint(
            prompt_tokens=prompt_tokens,
            ttft_s=sum(
                timing.step_s(new_tokens=tokens, decoding=False, usage=0)
                for tokens in _chunks(prompt_tokens, engine.max_num_batched_tokens)
            ),
            tokens_per_s=engine.max_num_batched_tokens / full_s,  # steps are full where prompts wait
        )


def _decode_points(engine: SchedulerConfig, timing: TimingModel) -> Iterable[DecodePoint]:
    for context_tokens in _fitting(CONTEXT_TOKENS, engine):
        blocks = -(-context_tokens // engine.block_size)
        for concurrency in CONCURRENCIES:
            if concurrency > engine.max_num_seqs or concurrency * blocks > engine.num_blocks:
                break
            usage = concurrency * blocks / engine.num_blocks
            itl_s = timing.step_s(new_tokens=0, decoding=True, usage=usage)
            yield DecodePoint(
                context_tokens=context_tokens,
                concurrency=concurrency,
                itl_s=itl_s,
                tokens_per_s=concurrency / itl_s,
            )


def _fitting(lengths: Sequence[int], engine: SchedulerConfig) -> list[int]:
    return [length for length in lengths if length < engine.context_length]


def _chunks(tokens: int, chunk_tokens: int) -> list[int]:
    """A prompt's parts, one a step."""
    full, rest = divmod(tokens, chunk_tokens)
    return [chunk_tokens] * full + ([rest] if rest else [])
