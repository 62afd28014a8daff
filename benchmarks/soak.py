"""Whether the frontend's memory grows with the number of requests it has served."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.points import Pace
from benchmarks.programs import BenchmarkError
from benchmarks.prompt import Prompt
from benchmarks.stack import serving

# Over 100,000 requests this is less than 60 bytes for each: room for fragmentation, none for a leak.
GROWTH_MAX_MIB = 5.0
_STEP_REQUESTS = 10_000
_STEPS_MIN = 4
_CONCURRENCY = 64


def soak(requests: int, model_dir: Path, prompt: Prompt) -> Iterator[tuple[int, float]]:
    """(requests so far, PSS in MiB with no request open) after each step of 10,000, or a quarter if that is less.

    BenchmarkError when a request fails.
    """
    step = min(_STEP_REQUESTS, max(1, requests // _STEPS_MIN))
    with serving(model_dir, prompt, speedup=Pace.BURST.value) as stack:
        for done in range(0, requests, step):
            count = min(step, requests - done)
            sample = stack.measure(_CONCURRENCY, warm_up_s=0, requests=count)
            if sample.errors:
                raise BenchmarkError(f"requests failed: {sample.errors}")
            yield done + count, sample.frontend_pss_mib


def growth_mib(sizes_mib: list[float]) -> float:
    """From the end of the first step, which fills caches and pools, to the end of the last."""
    return sizes_mib[-1] - sizes_mib[0]
