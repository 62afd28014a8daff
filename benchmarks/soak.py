"""Whether the frontend's memory or descriptors grow with the number of requests it has served."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.points import Pace
from benchmarks.programs import BenchmarkError
from benchmarks.prompt import Prompt
from benchmarks.stack import serving

# Over 100,000 requests this is less than 60 bytes for each: room for fragmentation, none for a leak.
GROWTH_MAX_MIB = 5.0
MORE_DESCRIPTORS_MAX = 4
_STEP_REQUESTS = 10_000
_STEPS_MIN = 4
_CONCURRENCY = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Of the frontend, with no request open."""

    requests: int  # so far
    pss_mib: float
    descriptors: int


def soak(requests: int, output_tokens: int, model_dir: Path, prompt: Prompt) -> Iterator[Size]:
    """After each step of 10,000 requests, or a quarter if that is less. BenchmarkError when a request fails."""
    step = min(_STEP_REQUESTS, max(1, requests // _STEPS_MIN))
    with serving(model_dir, prompt, speedup=Pace.BURST.value) as stack:
        for done in range(0, requests, step):
            count = min(step, requests - done)
            sample = stack.measure(_CONCURRENCY, warm_up_s=0, requests=count, output_tokens=output_tokens)
            if sample.errors:
                raise BenchmarkError(f"requests failed: {sample.errors}")
            yield Size(requests=done + count, pss_mib=sample.frontend_pss_mib, descriptors=sample.frontend_descriptors)


def growth_mib(sizes: Sequence[Size]) -> float:
    """From the end of the first step, which fills caches and pools, to the end of the last."""
    return sizes[-1].pss_mib - sizes[0].pss_mib


def more_descriptors(sizes: Sequence[Size]) -> int:
    """Likewise."""
    return sizes[-1].descriptors - sizes[0].descriptors
